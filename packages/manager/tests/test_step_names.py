"""Names of steps: what is listed can be loaded, and what is no step influences nothing."""

from dataclasses import dataclass

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_manager.errors import StepAlreadyExistsError
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.step_names import (
    CompositeNameFormat,
    NameFormat,
    composite_name_format,
    standard_name_format,
)
from holdfast_manager.training import Trash
from holdfast_storage import get_loop, open_backend


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def opened(place, names=None, **options):
    return training.Checkpointer(place, step_name_format=names, **options)


def put(place, *keys):
    for key in keys:
        get_loop().run(open_backend(place).put(key, b"x"))


PADDED = standard_name_format(step_format_fixed_length=4)
PREFIXED = standard_name_format(step_prefix="step")
BOTH = standard_name_format(step_prefix="ckpt", step_format_fixed_length=3)


@pytest.mark.parametrize(
    ("names", "step", "name"),
    [
        (standard_name_format(), 23, "23"),
        (standard_name_format(), 0, "0"),
        (PADDED, 23, "0023"),
        (PADDED, 123456, "123456"),
        (PREFIXED, 23, "step_23"),
        (BOTH, 23, "ckpt_023"),
        (BOTH, 1234, "ckpt_1234"),
        (standard_name_format(step_prefix="a_1"), 2, "a_1_2"),
        (standard_name_format(), 10**40, "1" + "0" * 40),
    ],
    ids=str,
)
def test_a_name_is_built_and_recognised(names, step, name):
    assert names.build_name(step) == name
    assert names.parse_name(name) == step


@pytest.mark.parametrize("name", ["-1", "01", "+1", "1.0", "1e3", " 1", "1 ", "", "x", "1_000"])
def test_the_plain_format_recognises_no_other(name):
    assert standard_name_format().parse_name(name) is None


@pytest.mark.parametrize(
    "name", ["٣", "\uff11\uff12", "²", "1\n", "1.orbax-checkpoint-tmp", "9" * 400]
)
def test_digits_of_other_scripts_and_leftovers_are_no_steps(name):
    assert standard_name_format().parse_name(name) is None


@pytest.mark.parametrize("name", ["23", "00023", "023", "step_0023", "step_023"])
def test_a_format_recognises_only_what_it_would_write(name):
    assert PADDED.parse_name(name) is None
    assert PREFIXED.parse_name(name) is None


@pytest.mark.parametrize("prefix", ["", "a/b", ".x", "_x", "a\\b", "a\0", 7])
def test_a_prefix_that_no_folder_can_have_is_refused(prefix):
    with pytest.raises((TypeError, ValueError)):
        standard_name_format(step_prefix=prefix)


def test_other_bad_arguments_are_refused_in_words(place):
    with pytest.raises(ValueError, match="step_format_fixed_length is an integer >= 1"):
        standard_name_format(step_format_fixed_length=0)
    with pytest.raises(NotImplementedError, match="single_host_load_and_broadcast"):
        standard_name_format(single_host_load_and_broadcast=True)
    with pytest.raises(TypeError, match="build_name"):
        opened(place, "step_{}")
    with pytest.raises(TypeError, match="parse_name"):
        composite_name_format(PADDED, [int])


def test_formats_are_values():
    assert standard_name_format(step_prefix="step") == PREFIXED != PADDED
    assert isinstance(PADDED, NameFormat)
    assert composite_name_format(PADDED, [PREFIXED]) == CompositeNameFormat(PADDED, (PREFIXED,))


@pytest.mark.parametrize("names", [PADDED, PREFIXED, BOTH], ids=lambda n: n.build_name(7))
def test_a_run_of_each_format_is_saved_listed_loaded_collected_and_reopened(place, names):
    with opened(place, names, preservation_policy=LatestN(2)) as run:
        for step in (1, 2, 30000):
            assert run.save(step, state(step), metrics={"of": step})
        run.wait()
        assert run.step_name_format == names
    again = opened(place, names)
    assert steps(again) == [2, 30000]
    assert again.latest.path.endswith(names.build_name(30000))
    assert again.load(2)["w"][0] == 2
    assert again.latest.metrics == {"of": 30000}
    assert again.metadata(2).step == 2
    assert steps(opened(place, standard_name_format(step_prefix="other"))) == []
    assert [entry.step for entry in names.find_all(place)] == [2, 30000]
    assert names.find_step(place, 2).path == again.checkpoints[0].path
    with pytest.raises(ValueError, match="no step 1 "):
        names.find_step(place, 1)


def test_a_composite_format_loads_what_it_lists_and_goes_on_in_the_new_one(place):
    with opened(place) as old:
        for step in (1, 2):
            old.save(step, state(step))
    with opened(place, PREFIXED) as older:
        older.save(3, state(3))
    names = composite_name_format(PADDED, [PREFIXED, standard_name_format()])
    with opened(place, names, preservation_policy=LatestN(3)) as run:
        assert steps(run) == [1, 2, 3]
        assert [run.load(step)["w"][0] for step in (1, 2, 3)] == [1, 2, 3]
        assert [run.metadata(entry).step for entry in run.checkpoints] == [1, 2, 3]
        assert run.save(4, state(4))
        assert run.latest.path.endswith("0004")
        assert run.save(2, state(20), overwrite=True, force=True)
        run.wait()
        assert steps(run) == [2, 3, 4]
    assert steps(opened(place)) == [2]  # replaced where it was found
    assert opened(place, names).load(2)["w"][0] == 20


def test_of_two_folders_for_one_step_the_written_format_is_it(place, caplog):
    with opened(place) as plain:
        plain.save(1, state(1))
    with opened(place, PADDED) as padded:
        padded.save(1, state(100))
    both = composite_name_format(PADDED, [standard_name_format()])
    run = opened(place, both)
    assert steps(run) == [1]
    assert run.load(1)["w"][0] == 100
    assert "two folders for step 1" in caplog.text
    put(place, "0002/a-stray-file")
    with opened(place) as plain:
        plain.save(2, state(2))
    assert opened(place, both).load(2)["w"][0] == 2  # a folder that holds none is not in the way


@pytest.mark.parametrize("trash", [None, Trash()], ids=["deleted", "trash"])
def test_a_step_in_two_folders_goes_as_one(place, trash):
    for names, value in ((standard_name_format(), 1), (PADDED, 100)):
        with opened(place, names) as run:
            for step in (1, 2, 3, 4):
                run.save(step, state(value + step))
    both = composite_name_format(PADDED, [standard_name_format()])
    with opened(place, both, preservation_policy=LatestN(2), trash=trash) as run:
        assert run.save(3, state(3), force=True, overwrite=True)
        run.wait()
        assert steps(run) == [3, 4]
        assert run.load(3)["w"][0] == 3
        run.delete(4)
        run.reload()
        assert (steps(run), run.latest.step) == ([3], 3)
        if trash is not None:
            run.restore_from_trash(4)
            assert run.load(4)["w"][0] == 104  # that which was listed
    left = [3] if trash is None else [3, 4]
    assert (steps(opened(place, both)), steps(opened(place, PADDED))) == (left, left)
    assert steps(opened(place)) == [3]  # replaced in the folder that is it


@pytest.mark.parametrize("file", ["_COMMIT.json", "state/_TREE.json", "_MANIFEST.jsonl"])
def test_a_step_is_loaded_from_its_other_folder_if_one_is_damaged(tmp_path, file):
    for names, value in ((standard_name_format(), 1), (PADDED, 100)):
        with opened(tmp_path, names) as run:
            for step in (1, 2):
                run.save(step, state(value + step))
    both = composite_name_format(PADDED, [standard_name_format()])
    run = opened(tmp_path, both)
    (tmp_path / "0002" / file).write_text("{")
    for again in (run, run, opened(tmp_path, both)):
        assert again.load(fallback=True)["w"][0] == 3  # that of the folder 2
        assert (again.last_load.step, again.last_load.path[-2:]) == (2, "/2")
        assert (steps(again), dict(again.quarantined)) == ([1, 2], {})
        assert again.load()["w"][0] == 3
    with pytest.raises(StepAlreadyExistsError):
        run.save(2, state(5), force=True)
    run.delete(2)
    run.close()
    again = opened(tmp_path, both)
    assert steps(again) == [1]
    assert set(again.quarantined) == ({2} if file == "_COMMIT.json" else set())


def test_a_format_of_the_users_own(place):
    @dataclass(frozen=True)
    class Epochs:
        def build_name(self, step):
            return f"epoch-{step:x}"

        def parse_name(self, name):
            return int(name.removeprefix("epoch-"), 16)  # raises for anything else

    put(place, "notes/x", "epoch-zz/x")
    with opened(place, Epochs()) as run:
        run.save(255, state(255))
    assert steps(opened(place, Epochs())) == [255]
    assert opened(place, Epochs()).latest.path.endswith("epoch-ff")


@pytest.mark.parametrize("name", ["a/b", "", ".x", "_committed", "metadata", "..", "x\0", 7])
def test_a_format_that_makes_impossible_names_is_refused_before_anything_is_written(place, name):
    class Odd:
        def build_name(self, step):
            return name

        def parse_name(self, name):
            return None

    with opened(place, Odd()) as run, pytest.raises(ValueError, match="folder of a step"):
        run.save(1, state(1))


def test_who_opens_a_run_under_other_names_is_told_before_beginning_anew_beside_them(place, caplog):
    with opened(place, BOTH) as checkpointer:
        checkpointer.save(7, state(7))
    assert not caplog.records
    assert opened(place).latest is None
    (told,) = caplog.messages
    assert "'ckpt_007' may be steps under other names" in told
    assert "step_name_format" in told


def test_strays_empty_and_half_deleted_folders_influence_nothing(tmp_path):
    place = tmp_path / "job"
    with opened(place) as run:
        for step in (0, 1):
            run.save(step, state(step))
    (place / "100").mkdir()  # empty
    (place / "99" / "state" / "d").mkdir(parents=True)  # what a removal leaves elsewhere
    put(str(place), "98/state/d/x", "97/readme.txt", "96", "notes/_METADATA")
    (place / ".95.attempt-0123456789abcdef0123456789abcdef").mkdir()
    with opened(place, preservation_policy=LatestN(2)) as run:
        assert steps(run) == [0, 1]
        assert run.should_save(2)
        assert run.save(2, state(2))
        run.wait()
        assert steps(run) == [1, 2]
    for stray in ("100", "99/state/d", "98/state/d/x", "97/readme.txt", "96", "notes/_METADATA"):
        assert (place / stray).exists()


@pytest.mark.parametrize("step", [np.int64(4), np.uint8(4), np.array(4)])
def test_numpy_integers_are_steps_everywhere(place, step):
    with opened(place) as run:
        assert run.should_save(step)
        assert run.save(step, state(4))
        assert run.load(step)["w"][0] == 4
        assert run.metadata(step).step == 4
        run.pin(step, "x")
        run.unpin("x")
        assert run.delete(step)


@pytest.mark.parametrize("step", [-1, np.int64(-1), 1.0, np.float32(1), np.array([1, 2]), "1"])
def test_what_is_no_step_is_refused_everywhere(place, step):
    run = opened(place)
    for call in (
        lambda: run.save(step, state(1)),
        lambda: run.should_save(step),
        lambda: run.load(step),
        lambda: run.metadata(step),
        lambda: run.pin(step, "x"),
        lambda: run.delete(step, missing_ok=True),
    ):
        with pytest.raises((TypeError, ValueError), match="a step is an integer >= 0"):
            call()
