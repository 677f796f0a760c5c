"""Eight CPU devices, so that shardings are real; and a fresh place to save to."""

import os

# Before JAX starts its backends.
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import uuid

import pytest


@pytest.fixture(params=["memory", "local"])
def place(request, tmp_path):
    """A path or URL under which nothing is yet, on each store that needs no server."""
    if request.param == "memory":
        return f"memory://test-{uuid.uuid4().hex}/folder"
    return str(tmp_path / "folder")
