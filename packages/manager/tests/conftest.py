"""A fresh run on each store that needs no server."""

import uuid

import pytest


@pytest.fixture(params=["memory", "local"])
def place(request, tmp_path):
    """A path or URL under which nothing is yet."""
    if request.param == "memory":
        return f"memory://run-{uuid.uuid4().hex}/job"
    return str(tmp_path / "job")
