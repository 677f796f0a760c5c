"""training.Checkpointer and Orbax's of that name, and Orbax's manager: each goes on in our runs."""

import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import holdfast as hf
from holdfast.path import step as names

keep = hf.training.preservation_policies
FORMATS = {
    "plain": {},
    "prefix": {"step_prefix": "ckpt"},
    "padded": {"step_format_fixed_length": 6},
    "both": {"step_prefix": "ckpt", "step_format_fixed_length": 6},
}


def state(value):
    return {"w": jnp.full((2, 3), float(value)), "n": np.asarray(value)}


def steps(run):
    return [entry.step for entry in run.checkpoints]


def theirs(path, form=None, **options):
    if form:
        options["step_name_format"] = v1.path.step.standard_name_format(**form)
    return v1.training.Checkpointer(path, **options)


def ours(path, form=None, **options):
    if form:
        options["step_name_format"] = names.standard_name_format(**form)
    return hf.training.Checkpointer(path, **options)


def check(run, wanted):
    """What either library sees of a run that either of them wrote."""
    run.reload()
    assert steps(run) == wanted
    assert run.latest.step == wanted[-1]
    for entry in run.checkpoints:
        assert entry.metrics == {"loss": -entry.step}
        found = run.load(entry.step, state(0))
        np.testing.assert_array_equal(found["w"], state(entry.step)["w"])
        assert found["n"] == entry.step
    np.testing.assert_array_equal(run.load()["w"], state(wanted[-1])["w"])
    described = run.metadata(wanted[0])
    assert described.metadata["w"].shape == (2, 3)
    assert described.custom_metadata == {"step": wanted[0]}
    assert run.root_metadata().custom_metadata == {"who": "began"}


def save(run, number):
    assert run.save(
        number, state(number), metrics={"loss": -number}, custom_metadata={"step": number}
    )


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("begin", [theirs, ours], ids=["theirs", "ours"])
def test_a_run_begun_by_one_is_gone_on_with_by_the_other_and_seen_by_both(tmp_path, begin, form):
    go_on = ours if begin is theirs else theirs
    with begin(tmp_path, form, custom_metadata={"who": "began"}) as run:
        save(run, 1)
        save(run, 2)
    with go_on(tmp_path, form, custom_metadata={"who": "went on"}) as run:
        check(run, [1, 2])
        save(run, 3)
        check(run, [1, 2, 3])
    with begin(tmp_path, form) as run:
        check(run, [1, 2, 3])


def test_several_items_and_async_saves_of_theirs_load(tmp_path):
    with theirs(tmp_path) as run:
        for step in (1, 2):
            items = {"params": state(step), "rest": {"x": [1, 2.5]}}
            response = run.save_checkpointables_async(step, items)
            response.result()
    run = ours(tmp_path, preservation_policy=keep.LatestN(2))
    assert steps(run) == [1, 2]
    found = run.load_checkpointables(1)
    assert found["params"]["n"] == 1
    assert found["rest"]["x"][1] == 2.5
    assert set(run.checkpointables_metadata().metadata) == {"params", "rest"}
    assert run.save_checkpointables(3, {"params": state(3)})
    run.close()
    assert steps(ours(tmp_path)) == [2, 3]
    with theirs(tmp_path) as again:
        assert steps(again) == [2, 3]


def test_steps_from_before_orbax_marked_its_checkpoints_are_read_and_stay(tmp_path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave(state(step)), metrics={"loss": -step})
    for step in (1, 2):
        (tmp_path / str(step) / "_CHECKPOINT_METADATA").unlink()
        (tmp_path / str(step) / "commit_success.txt").unlink(missing_ok=True)
    (tmp_path / "7" / "src").mkdir(parents=True)
    (tmp_path / "7" / "src" / "main.py").touch()
    with ours(tmp_path, preservation_policy=keep.LatestN(1)) as run:
        assert steps(run) == [1, 2]
        assert [run.load(step)["n"] for step in (1, 2)] == [1, 2]
        assert run.latest.metrics == {"loss": -2}
        assert run.latest.size_bytes > 0
        for step in (3, 4):
            assert run.save(step, state(step))
        run.wait()
        assert steps(run) == [1, 2, 4]
        assert "before it marked" in run.explain()[0].reasons[0]
        with pytest.raises(hf.errors.UnsupportedOperationError, match="Orbax wrote this step"):
            run.delete(1)
        assert steps(run) == [1, 2, 4]
        with pytest.raises(FileExistsError):
            run.save(2, state(20), force=True, overwrite=True)
    assert [ours(tmp_path).load(step)["n"] for step in (1, 2, 4)] == [1, 2, 4]


ORBAX_RETENTION = {
    "Checkpointer": lambda path: theirs(
        path,
        preservation_policy=v1.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=True,
    ),
    "CheckpointManager": lambda path: ocp.CheckpointManager(
        path, options=ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    ),
}


@pytest.mark.parametrize("kind", ORBAX_RETENTION)
def test_orbax_collects_our_steps_and_leaves_everything_else_of_ours_alone(tmp_path, kind):
    with ours(tmp_path, custom_metadata={"who": "began"}) as run:
        for step in (1, 2, 3):
            save(run, step)
        run.pin(1, "first")
        run.pin(3, "third")
    attempt = ".9.attempt-0123456789abcdef0123456789abcdef"
    for private in ("_lease/1", "_readers/a", "_quarantine/2", "_committed/2", f"{attempt}/x"):
        (tmp_path / private).parent.mkdir(exist_ok=True)
        (tmp_path / private).write_bytes(b"x")
    private = {p: p.read_bytes() for p in tmp_path.glob("[._m]*/*") if p.is_file()}
    assert len(private) >= 8
    with ORBAX_RETENTION[kind](tmp_path) as orbax:
        for step in (4, 5):
            args = (state(step),) if kind == "Checkpointer" else ()
            more = {} if args else {"args": ocp.args.StandardSave(state(step))}
            assert orbax.save(step, *args, **more)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["4", "5"]
    assert {path: path.read_bytes() for path in private} == private
    for path in private:
        if path.parent.name not in ("_pins", "metadata"):
            path.unlink()  # they are no real ones
    with ours(tmp_path, preservation_policy=keep.LatestN(2)) as run:
        assert steps(run) == [4, 5]
        assert run.load(4, **({"checkpointable_name": "default"} if more else {}))["n"] == 4
        assert dict(run.pins) == {"first": 1, "third": 3}  # of steps that are gone
        run.unpin("first")
        save(run, 6)
        run.wait()
        assert steps(run) == [5, 6]
        assert run.root_metadata().custom_metadata == {"who": "began"}


def test_a_step_that_orbax_removes_while_we_have_the_run_open_is_missed_and_not_mourned(tmp_path):
    with ours(tmp_path, preservation_policy=keep.LatestN(3)) as run:
        for step in (1, 2, 3):
            save(run, step)
        with ocp.CheckpointManager(tmp_path) as orbax:
            orbax.delete(2)
        with pytest.raises(FileNotFoundError):
            run.load(2)
        save(run, 4)
        run.wait()
        assert steps(run) == [1, 3, 4]


def test_ten_thousand_steps_of_orbax_s_are_told_by_their_names(tmp_path, monkeypatch):
    """Fewer of them here: what is asked does not grow with them."""
    from holdfast_checkpointer import options
    from holdfast_storage import open_backend
    from holdfast_storage.testing.faulty import FaultyBackend

    with theirs(tmp_path) as run:
        run.save(0, state(0))
    for step in range(1, 30):
        shutil.copytree(tmp_path / "0", tmp_path / str(step))
    view = FaultyBackend(open_backend(str(tmp_path)), reads=True)
    monkeypatch.setattr(options.Context, "open_backend", lambda *_: view)
    assert steps(ours(tmp_path)) == list(range(30))
    assert [call.operation for call in view.calls] == ["children", "names"]
