"""The whole conformance kit on each server, and on one of them in bad weather."""

import pytest

from holdfast_s3 import S3Backend
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_rules import CommitRules
from holdfast_storage.testing.commit_tests import CommitTests
from holdfast_storage.testing.trash_tests import TrashTests
from integration.servers.proxy import running_proxy


def opened(server, bucket, **options):
    server.make_bucket(bucket)
    return S3Backend(f"s3://{bucket}/run", server.options | options)


@pytest.fixture
async def backend(s3_server, bucket_name):
    backend = opened(s3_server, bucket_name)
    yield backend
    await backend.aclose()


class TestBackend(StorageBackendTests):
    pass


class TestCommit(CommitTests):
    @pytest.fixture
    async def backend(self, ministack, bucket_name):
        backend = opened(ministack, bucket_name)
        yield backend
        await backend.aclose()


class TestCommitRulesOnMoto(CommitRules):
    """What differs between servers is their replies to single calls, which `TestBackend` and
    these show; where a writer is stopped is no matter of the server's.
    """

    @pytest.fixture
    async def backend(self, moto, bucket_name):
        backend = opened(moto, bucket_name)
        yield backend
        await backend.aclose()


class TestTrash(TrashTests):
    tick_s = 1.1

    @pytest.fixture
    async def backend(self, ministack, bucket_name):
        backend = opened(ministack, bucket_name)
        yield backend
        await backend.aclose()


SLOW = {"status": 503, "body": "<Error><Code>SlowDown</Code></Error>"}
RACING = {"status": 409, "body": "<Error><Code>ConditionalRequestConflict</Code></Error>"}
WEATHER = {
    "409 now and then": [("status", 4, RACING)],
    "cut after": [("drop_after", 5, {})],
    "half bodies": [("truncate", 5, {})],
    "all of it": [("status", 11, SLOW), ("drop", 13, {}), ("drop_after", 7, {})],
}


class TestBackendInBadWeather(StorageBackendTests):
    bad_weather = True

    @pytest.fixture(params=WEATHER)
    async def backend(self, request, short_pauses, ministack, bucket_name):
        ministack.make_bucket(bucket_name)
        with running_proxy(ministack.endpoint) as proxy:
            for action, every, how in WEATHER[request.param]:
                proxy.add(action, every=every, times=0, **how)
            options = ministack.options | {"endpoint_url": proxy.url}
            backend = S3Backend(f"s3://{bucket_name}/run", options)
            yield backend
            await backend.aclose()
