"""The whole conformance kit on real buckets, for whoever has some.

    HOLDFAST_REAL_URLS="s3://mine/kit gs://mine/kit gs://mine-hns/kit" \\
        uv run pytest integration/real

Credentials come as they do for a job. Everything is written below a new prefix, which is
removed in the end.
"""

import os
import uuid

import pytest

from holdfast_storage import open_backend, unregister
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_tests import CommitTests

URLS = os.environ.get("HOLDFAST_REAL_URLS", "").split()
if not URLS:
    pytest.skip("no real buckets: set HOLDFAST_REAL_URLS", allow_module_level=True)


@pytest.fixture
def no_cloud_settings():
    """Here this machine's configuration is what counts."""


@pytest.fixture(params=URLS)
async def backend(request):
    unregister(request.param.partition(":")[0])  # a backend of its own
    backend = open_backend(f"{request.param}/{uuid.uuid4().hex}")
    await backend.commit_strategy()
    yield backend
    await backend.delete_prefix("")
    await backend.aclose()


class TestBackend(StorageBackendTests):
    pass


class TestCommit(CommitTests):
    pass
