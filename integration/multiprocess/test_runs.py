"""A run of a whole job: one process decides, and all of them know the same."""

import pytest

import holdfast as hf
from integration.multiprocess import job, run_parts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def scenes(place):
    """What both processes of one job made of every scene."""
    started = job.start(2, "run_parts.scenes", str(place))
    try:
        first, second = started.results(300)
    finally:
        started.end()
    return {name: (first[name], second[name]) for name in first}


@pytest.fixture
def values(scenes):
    def of(name):
        for said in scenes[name]:
            assert "value" in said, said
        return [said["value"] for said in scenes[name]]

    return of


def test_a_hundred_saves_with_pauses_and_policies_of_each_process_s_own_mind(values):
    first, second = values("many_saves")
    assert first["saved"] == second["saved"]
    assert len(first["saved"]) == 100
    assert first["known"] == second["known"] == first["saved"][-3:]
    for said in (first, second):
        assert said["again"]["error"][0] == "StepAlreadyExistsError"
        assert said["threads"] < 60


def test_a_failure_of_one_process_in_the_background_is_told_once_on_all_and_saves_go_on(values):
    first, second = values("failed")
    assert "RemoteProcessError" in first["told"]["error"]
    assert first["told"]["process"] == 1
    assert "RemoteProcessError" not in second["told"]["error"]
    for said in (first, second):
        assert "OSError" in said["told"]["error"]
        assert "no space left for the write" in said["told"]["message"]
        assert said["again"]["value"] is True
        assert said["known"] == [0, 3]


def test_processes_that_do_not_call_the_same_are_told_who_called_what(values):
    first, second = values("disagreeing")
    for said in (first, second):
        for what, called in (("step", "save(0)"), ("call", "wait()")):
            assert said[what]["error"][0] == "DisagreementError"
            message = f"process 0 called {called}; process 1 called save(1)"
            assert message in said[what]["message"]
        assert "ValueError" in said["leaf"]["error"]
        assert "['bad']" in said["leaf"]["message"]
        assert said["saved"] is True
        assert said["known"] == [5]


def test_pins_removals_the_trash_and_the_older_manager_are_the_same_on_all(values):
    first, second = values("managed")
    assert first["pinned"]["error"][0] == second["pinned"]["error"][0] == "StepPinnedError"
    assert first["absent"]["error"][0] == second["absent"]["error"][0] == "PinNotFoundError"
    for said in (first, second):
        assert said["kept"] == [1, 3]
        assert said["deleted"] == [True, False, [3]]
        assert said["restored"] == [2, 3]
        assert said["verdicts"] == [[2, False], [3, True]]
        assert said["loaded"] is True
        assert said["should"] == [False, True]
        assert said["closed"]["error"][0] == "ValueError"
        assert said["v0"] == [[4, 6], True]


def test_a_save_is_stopped_on_all(values):
    assert values("stopped") == [[True, True, [2]]] * 2


def test_damage_that_one_process_reads_makes_all_load_the_step_before(values):
    first, second = values("damaged")
    assert first["alone"]["value"] is True  # it reads no damaged chunk
    assert "DamagedCheckpointError" in second["alone"]["error"]
    assert "RemoteProcessError" in first["misfit"]["error"]
    assert "RemoteProcessError" not in second["misfit"]["error"]
    for said in (first, second):
        assert "ValueError" in said["misfit"]["error"]
        assert said["loaded"] is True
        assert said["step"] == 1
        assert said["skipped"] == [[2, "damaged"]]
        assert said["quarantined"] == [2]
        assert said["known"] == [1]
        assert said["saved"] is True
        assert said["after"] == [[1, 2], []]


def test_an_error_in_a_policy_or_callback_of_the_user_s_is_told_or_logged_and_saves_go_on(values):
    for me, (decided, again, kept, last, known) in enumerate(values("moody")):
        assert "ArithmeticError" in decided["error"]
        assert ("RemoteProcessError" in decided["error"]) == (me == 1)
        assert "the policy has a bad day" in decided["message"]
        assert again is True
        assert kept["value"] is True  # what to keep is decided behind it, and logged
        assert last is True
        assert known == [0, 2, 3, 4]


def test_every_method_of_the_older_manager_answers_the_same_in_each_process(values):
    first, second = values("older")
    assert first == second
    assert [first[f"saved {step}"] for step in (0, 2, 3, 4, 6)] == [True, True, False, True, True]
    assert first["steps"] == [2, 6]  # step 4 was removed before the next turn told of it
    assert (first["latest"], first["best"]) == (6, 2)
    assert first["should"] == [False, True]
    assert first["metrics"] == {"score": 0.9}
    assert first["loaded"] == [True, {"at": 2}]
    assert first["items"] == ["extra", "metrics", "state"]
    assert first["left"] == [6]
    assert first["default"] is True


def test_calls_of_every_kind_in_any_order_leave_the_same_in_each_process(values):
    first, second = values("mixed")
    assert first == second
    assert first[0] is True


def test_all_read_the_same_steps_of_a_run_and_hold_them_until_all_have_read(values):
    first, second = values("followed")
    for seen, reached, left, late, held in (first, second):
        steps = [step for step, _, _ in seen]
        assert steps == sorted(set(steps))
        assert steps[-1] == 5
        assert all(loaded == step and readers for step, loaded, readers in seen)
        assert reached == 5
        assert ("FloatingPointError" in left["error"]) == (seen is second[0])
        assert late == -1
        assert held == []
    assert "RemoteProcessError" in first[2]["error"]
    assert "it has left its loop over the checkpoints" in first[2]["message"]
    assert [step for step, _, _ in first[0]] == [step for step, _, _ in second[0]]


@pytest.mark.parametrize("scene", ["signalled", "preempted"])
def test_a_signal_that_one_process_sees_makes_all_save_the_same_step_and_end(values, scene):
    first, second = values(scene)
    assert first == second
    assert first[0] >= 3
    assert first[1] == [first[0]]


def test_who_leaves_by_an_error_keeps_nobody_waiting(scenes):
    first, second = (said["value"] for said in scenes["left"])
    assert second["error"][0] == "FloatingPointError"
    assert "RemoteProcessError" in first["error"]
    assert "the loss is NaN" in first["message"]
    assert first["seconds"] < 60


def test_a_job_of_one_process_goes_on_where_the_run_is(scenes, place):
    folder = str(place / "many_saves")
    newest = scenes["many_saves"][0]["value"]["saved"][-1]
    assert run_parts.resume(folder) == [newest, 0, True, 1]
    with hf.training.Checkpointer(folder) as run:
        assert run.latest.step == newest + 1
        assert hf.verify(f"{folder}/{newest + 1}").ok
