"""The commit protocol's tests, on every kind of object store, with requests failing all along."""

import pytest

from holdfast_storage.testing.commit_tests import CommitTests


class TestCommitInBadWeather(CommitTests):
    """The tests that stop at each single call run without weather, where each takes less time.

    Weather at every single request of a save is `test_every_request.py`.
    """

    test_a_fault_at_any_call_loses_nothing_and_leaves_nothing = None
    test_another_actor_at_any_pause_meets_one_whole_attempt_or_none = None
    test_a_reply_lost_while_another_actor_is_half_way_tears_nothing = None
    test_two_actors_that_stop_half_way_tear_nothing = None
    test_a_reader_paused_anywhere_sees_one_attempt_or_a_deleted_one = None

    @pytest.fixture
    async def backend(self, faulty_store):
        backend = faulty_store.behind()
        await backend.commit_strategy()
        for action, every in (("status", 29), ("drop", 31), ("drop_after", 19), ("truncate", 37)):
            faulty_store.proxy.add(action, every=every, times=0)
        return backend
