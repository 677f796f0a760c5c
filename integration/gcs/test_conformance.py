"""The whole conformance kit on flat and hierarchical buckets, in good weather and in bad."""

import pytest

from holdfast_gcs import GcsBackend, detection
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_tests import CommitTests
from holdfast_storage.testing.trash_tests import TrashTests
from integration.servers.proxy import running_proxy


@pytest.fixture(params=["refuse", "merge", "replace"])
def onto_existing(request, gcs):
    """What a rename onto an existing folder does: nobody may depend on it."""
    gcs.onto_existing = request.param


async def opened(endpoint, bucket):
    backend = GcsBackend(f"gs://{bucket}/run", {"endpoint_url": endpoint})
    await backend.hierarchical()
    return backend


@pytest.fixture
async def backend(gcs, gcs_bucket):
    backend = await opened(gcs.url, gcs_bucket)
    yield backend
    await backend.aclose()


class TestBackend(StorageBackendTests):
    pass


class TestCommitFlat(CommitTests):
    @pytest.fixture
    async def backend(self, gcs, bucket_name):
        gcs.make_bucket(bucket_name)
        backend = await opened(gcs.url, bucket_name)
        yield backend
        await backend.aclose()


class TestCommitHierarchical(CommitTests):
    @pytest.fixture
    async def backend(self, gcs, bucket_name):
        gcs.make_bucket(bucket_name, hierarchical=True)
        gcs.onto_existing = "merge"
        gcs.polls = 0  # a rename is done at the first look: hundreds are made
        backend = await opened(gcs.url, bucket_name)
        yield backend
        await backend.aclose()


class TestTrashHierarchical(TrashTests):
    tick_s = 1.1

    @pytest.fixture
    async def backend(self, gcs, bucket_name):
        gcs.make_bucket(bucket_name, hierarchical=True)
        backend = await opened(gcs.url, bucket_name)
        yield backend
        await backend.aclose()


SLOW = {"status": 503}
LIMITED = {"status": 429, "headers": {"Retry-After": "0"}}
WEATHER = {
    "429 now and then": [("status", 5, LIMITED)],
    "half bodies": [("truncate", 5, {})],
    "all of it": [("status", 11, SLOW), ("drop", 13, {}), ("drop_after", 7, {})],
}


class TestBackendInBadWeather(StorageBackendTests):
    bad_weather = True

    @pytest.fixture(params=WEATHER)
    async def backend(self, request, short_pauses, gcs, gcs_bucket):
        with running_proxy(gcs.url) as proxy:
            backend = await opened(proxy.url, gcs_bucket)
            for action, every, how in WEATHER[request.param]:
                proxy.add(action, every=every, times=0, **how)
            yield backend
            await backend.aclose()


@pytest.fixture(autouse=True)
def ask_again():
    """Each test asks its own server what its buckets are."""
    detection._answers.clear()
