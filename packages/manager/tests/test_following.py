"""Jobs that follow a run: what is yielded, when a wait ends, and what holds meanwhile."""

import asyncio

import numpy as np
import pytest

from holdfast_checkpointer.options import Context
from holdfast_manager import following, training
from holdfast_manager.engine.reading import Reading
from holdfast_manager.following import follower as following_follower
from holdfast_manager.following.follower import Follower, Waiting
from holdfast_manager.following.together import Together
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.step_names import standard_name_format
from holdfast_storage import StoragePermissionError, get_loop, open_backend
from holdfast_storage.testing.faulty import Fault, FaultyBackend


def state(value):
    return {"w": np.full(3, value, np.float32)}


def save(place, *numbers, policy=None, **options):
    with training.Checkpointer(place, preservation_policy=policy, **options) as checkpointer:
        for number in numbers:
            assert checkpointer.save(number, state(number))


def leases(place):
    return len(get_loop().run(open_backend(place).children("_readers")).objects)


class Clock:
    """A clock that only sleeping moves; what happens meanwhile is called then."""

    def __init__(self, *happens):
        self.now = 0.0
        self.slept = []
        self._happens = list(happens)

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)
        if self._happens:
            self._happens.pop(0)()


def follow(place, clock, *, backend=None, **waiting):
    return Follower(
        backend or open_backend(place),
        standard_name_format(),
        Waiting(**waiting),
        clock=clock,
        sleep=clock.sleep,
    )


def step_of(reading):
    if reading is None:
        return None
    reading.close()
    return reading.entry.step


def test_the_newest_is_yielded_as_it_appears_and_stays_while_it_is_read(place):
    save(place, 1, 2)
    seen, listed = [], []
    for step in following.checkpoints_iterator(place, timeout=0):
        assert leases(place) == 1
        if step < 8:
            save(place, step + 1, step + 2, step + 3, policy=LatestN(1))
        with training.Checkpointer(place) as reader:
            assert reader.load(step)["w"][0] == step
            listed.append([entry.step for entry in reader.checkpoints])
        seen.append(step)
    assert seen == [2, 5, 8]
    assert listed[:2] == [[2, 5], [5, 8]]  # what was passed over is gone
    assert leases(place) == 0


def test_a_loop_that_is_left_lets_the_step_go(place):
    save(place, 1)
    for _ in following.checkpoints_iterator(place):
        break
    assert leases(place) == 0
    iterator = following.checkpoints_iterator(place)
    assert next(iterator) == 1
    assert leases(place) == 1
    iterator.close()
    assert leases(place) == 0
    with pytest.raises(KeyError), following.wait_for_new_checkpoint(place):
        raise KeyError
    assert leases(place) == 0


def test_a_run_that_does_not_exist_yet_is_waited_for(place):
    with following.wait_for_new_checkpoint(place, timeout=0) as step:
        assert step == -1
    assert list(following.checkpoints_iterator(place, timeout=0)) == []
    clock = Clock(lambda: None, lambda: save(place, 0))
    assert step_of(follow(place, clock).wait(0)) == 0
    assert clock.slept == [1.0, 1.0]


def test_a_step_is_waited_for_until_it_or_a_later_one_is_there(place):
    save(place, 1, 2**40)
    for until, found in [(None, 2**40), (1, 2**40), (np.int64(2**40), 2**40), (2**40 + 1, -1)]:
        with following.wait_for_new_checkpoint(place, until_step=until, timeout=0) as step:
            assert (step, type(step)) == (found, int)


@pytest.mark.parametrize("answers", [[True], [False, False, False, True]])
def test_timeout_fn_is_asked_once_each_time_the_wait_expires(place, answers):
    asked = []

    def timeout_fn():
        asked.append(clock.now)
        return answers[len(asked) - 1]

    clock = Clock()
    waiting = {"timeout": 2.5, "timeout_fn": timeout_fn}
    assert follow(place, clock, **waiting).wait(0) is None
    assert len(asked) == len(answers)
    assert asked[0] == 2.5  # not a sleep later
    assert clock.slept[:3] == [1.0, 1.0, 0.5]


def test_a_step_saved_before_timeout_fn_answers_is_not_missed(place):
    def timeout_fn():
        save(place, 7)
        return True

    for step in following.checkpoints_iterator(place, timeout=0, timeout_fn=timeout_fn):
        assert step == 7
        timeout_fn = None
        break
    assert timeout_fn is None


def test_a_timeout_of_zero_with_a_timeout_fn_does_not_spin(place):
    clock, answers = Clock(), [True, False, False]
    waiting = {"timeout": 0.0, "timeout_fn": answers.pop}
    assert follow(place, clock, **waiting).wait(0) is None
    assert clock.slept == [1.0, 1.0]


def test_yields_are_min_interval_secs_apart(place):
    save(place, 1)
    clock = Clock(lambda: save(place, 2))
    together = Together(follow(place, clock, timeout=0.0), str(place), Context())
    steps = following.functions._follow(together, 60.0)
    assert next(steps) == 1
    clock.now += 13
    assert next(steps) == 2
    assert clock.slept == [47.0]
    clock.now += 100
    assert list(steps) == []
    assert clock.slept == [47.0]


def test_a_step_that_is_not_whole_is_passed_over_until_it_is(place):
    save(place, 1, 2)
    backend = open_backend(place)

    async def take_a_file():
        found = [info.key async for info in backend.walk("2") if info.key.endswith("_METADATA")]
        data = await backend.get(found[0])
        await backend.delete(found[0])
        return found[0], data

    key, data = get_loop().run(take_a_file())
    clock = Clock(lambda: get_loop().run(backend.put(key, data)))
    follower = follow(place, clock)
    assert step_of(follower.wait(0)) == 1
    assert step_of(follower.wait(2)) == 2
    assert clock.slept == [1.0]


def test_a_quarantined_step_is_passed_over(place):
    save(place, 1, 2)
    backend = open_backend(place)

    async def damage():
        found = [info async for info in backend.walk("2") if "/d/" in info.key]
        key = max(found, key=lambda info: info.size).key
        data = await backend.get(key)
        await backend.put(key, bytes(len(data)))

    get_loop().run(damage())
    follower = follow(place, Clock(lambda: save(place, 3)))
    assert step_of(follower.wait(0)) == 2  # nobody has read it yet
    assert training.Checkpointer(place).load(fallback=True)["w"][0] == 1
    assert step_of(follower.wait(0)) == 1
    assert step_of(follower.wait(2)) == 3


@pytest.mark.parametrize("prefix", [None, "checkpoint"])
@pytest.mark.parametrize("length", [None, 8])
def test_steps_are_found_under_their_names_among_strays(place, prefix, length):
    names = standard_name_format(step_prefix=prefix, step_format_fixed_length=length)
    save(place, 0, 1, step_name_format=names)
    backend = open_backend(place)
    for stray in (names.build_name(2), "3.foo", names.build_name(4) + ".orbax-checkpoint-tmp"):
        get_loop().run(backend.put(f"{stray}/params/x", b""))
    how = {"step_prefix": prefix, "step_format_fixed_length": length}
    assert list(following.checkpoints_iterator(place, timeout=0, **how)) == [1]
    assert list(following.checkpoints_iterator(place, timeout=0, step_name_format=names)) == [1]
    with following.wait_for_new_checkpoint(place, timeout=0, **how) as step:
        assert step == 1
    other = standard_name_format(step_prefix="other")
    assert list(following.checkpoints_iterator(place, timeout=0, step_name_format=other)) == []


def test_a_failure_that_may_pass_is_logged_and_the_wait_goes_on(place, caplog):
    save(place, 1)
    plain, point, outcomes = open_backend(place), 0, set()
    while True:
        point += 1
        view = FaultyBackend(plain, {point: Fault.REFUSE}, reads=True)
        clock = Clock()
        caplog.clear()
        reading = follow(place, clock, backend=view).wait(0)
        calls = len(view.calls)
        view.faults.clear()
        assert step_of(reading) == 1
        outcomes.add(len(clock.slept))
        assert ("could not look for a new step" in caplog.text) == bool(clock.slept)
        if calls < point:
            break
    assert outcomes == {0, 1}
    assert leases(place) == 0


class Hanging(FaultyBackend):
    """A store that does not answer."""

    async def children(self, prefix):
        await asyncio.sleep(3600)


class Forbidden(FaultyBackend):
    """A store whose listing is refused."""

    async def children(self, prefix):
        raise StoragePermissionError("injected: 403", key=prefix, root=self.root)


class ReadOnly(FaultyBackend):
    """A store that may only be read."""

    async def put(self, key, data, **how):
        raise StoragePermissionError("injected: 403", key=key, root=self.root)


def test_a_store_that_hangs_does_not_hold_up_the_end_of_the_wait(place, caplog, monkeypatch):
    monkeypatch.setattr(following_follower, "LOOK_S", 0.01)
    clock = Clock()
    hanging = Hanging(open_backend(place))
    assert follow(place, clock, backend=hanging, timeout=0.02).wait(0) is None
    assert "could not look for a new step" in caplog.text


def test_a_run_that_may_not_be_read_is_an_error_at_once(place):
    with pytest.raises(StoragePermissionError):
        follow(place, Clock(), backend=Forbidden(open_backend(place))).wait(0)


def test_a_run_that_may_only_be_read_is_followed_without_a_lease_or_refused(place, caplog):
    save(place, 1)
    view = ReadOnly(open_backend(place))
    follower = follow(place, Clock(), backend=view)
    assert [step_of(follower.wait(0)) for _ in range(2)] == [1, 1]
    assert caplog.text.count("cannot be written to by this process") == 1
    with pytest.raises(StoragePermissionError):
        follow(place, Clock(), backend=view, required=True).wait(0)
    reading = follower.wait(0)
    save(place, 2, 3, policy=LatestN(1))
    assert not reading.protected
    with pytest.raises(FileNotFoundError, match="1"):
        training.Checkpointer(place).load(reading.entry.step)


def test_what_snapshots_were_for_is_said_to_make_no_difference(place, caplog):
    how = {"snapshot_dir": "elsewhere", "set_immutable": True}
    assert list(following.checkpoints_iterator(place, timeout=0, **how)) == []
    assert "snapshot_dir='elsewhere' makes no difference" in caplog.text
    assert "set_immutable=True makes no difference" in caplog.text


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"timeout": -1}, ValueError, "timeout is a number of seconds >= 0, got -1"),
        ({"timeout": "1"}, TypeError, "timeout is a number of seconds"),
        ({"seconds_to_sleep": float("nan")}, ValueError, "seconds_to_sleep is a number"),
        ({"seconds_to_sleep": True}, TypeError, "seconds_to_sleep is a number"),
        ({"timeout_fn": True}, TypeError, "timeout_fn is called without arguments"),
        ({"step_name_format": "step"}, TypeError, "a step name format has"),
        ({"step_prefix": "_x"}, ValueError, "step_prefix is the beginning"),
        (
            {"step_name_format": standard_name_format(), "step_prefix": "x"},
            ValueError,
            "given instead of it",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_waited_for(place, how, error, message):
    for function in (following.checkpoints_iterator, following.wait_for_new_checkpoint):
        with pytest.raises(error, match=message):
            function(place, **how)
    with pytest.raises(ValueError, match="min_interval_secs"):
        following.checkpoints_iterator(place, min_interval_secs=-1)
    with pytest.raises(ValueError, match="a step is an integer >= 0"):
        following.wait_for_new_checkpoint(place, until_step=-1)


def test_a_step_that_goes_while_it_is_looked_at_is_no_error(place, monkeypatch):
    """The newest is deleted by name between the listing and the lease."""
    save(place, 1, 2)
    begin = Reading.begin

    async def begin_late(self, *, required):
        if self.entry.step == 2:
            await asyncio.to_thread(lambda: training.Checkpointer(place).delete(2))
        await begin(self, required=required)

    monkeypatch.setattr(Reading, "begin", begin_late)
    clock = Clock()
    assert step_of(follow(place, clock).wait(0)) == 1
    assert clock.slept == [1.0]
    assert leases(place) == 0
