"""The whole conformance kit on a real object store; at night, for it is 150 MB and minutes."""

import pytest

from holdfast_s3 import S3Backend
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_tests import CommitTests
from integration.servers import s3

if not s3.has_seaweedfs():
    pytest.skip("runs at night, with: uv sync --group nightly", allow_module_level=True)


@pytest.fixture
async def backend(seaweedfs, bucket_name):
    seaweedfs.make_bucket(bucket_name)
    backend = S3Backend(f"s3://{bucket_name}/run", seaweedfs.options)
    yield backend
    await backend.aclose()


class TestBackend(StorageBackendTests):
    backslash_divides = True


class TestCommit(CommitTests):
    pass
