"""The commit protocol's rules, on every kind of object store, with requests failing all along."""

import pytest

from holdfast_storage.testing.commit_rules import CommitRules


class TestCommitInBadWeather(CommitRules):
    """Weather at every single request of a save is `test_every_request.py`."""

    @pytest.fixture
    async def backend(self, faulty_store):
        backend = faulty_store.behind()
        await backend.commit_strategy()
        for action, every in (("status", 29), ("drop", 31), ("drop_after", 19), ("truncate", 37)):
            faulty_store.proxy.add(action, every=every, times=0)
        return backend
