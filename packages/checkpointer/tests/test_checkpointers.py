"""The v0 checkpointers: options, errors in the background, cancellation, and descriptions."""

import asyncio
import concurrent.futures
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import holdfast as hf
from holdfast_checkpointer.handlers import pytree

o = hf.options
a = hf.args


@pytest.fixture
def gate(monkeypatch):
    """Holds the writing of trees back until it is opened."""
    opened = threading.Event()
    write = pytree.StagedPyTree.write

    async def held(self, area):
        await asyncio.to_thread(opened.wait, 60)
        return await write(self, area)

    monkeypatch.setattr(pytree.StagedPyTree, "write", held)
    yield opened
    opened.set()


@pytest.fixture
def broken(monkeypatch):
    """Makes the next writing of a tree fail."""
    write = pytree.StagedPyTree.write
    failures = [ConnectionError("the cable is out")]

    async def fail(self, area):
        if failures:
            raise failures.pop() from OSError("somebody tripped")
        return await write(self, area)

    monkeypatch.setattr(pytree.StagedPyTree, "write", fail)


# --- what they are called with ---------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda c, path, tree: c.save(path, tree),
        lambda c, path, tree: c.save(path, item=tree),
        lambda c, path, tree: c.save(path, state=tree),
        lambda c, path, tree: c.save(path, a.PyTreeSave(tree)),
        lambda c, path, tree: c.save(path, args=a.PyTreeSave(tree)),
    ],
    ids=["positional", "item=", "state=", "arguments", "args="],
)
def test_a_tree_can_be_given_in_every_way_that_orbax_documents(call, place):
    with hf.PyTreeCheckpointer() as checkpointer:
        call(checkpointer, place, {"w": 3})
        assert checkpointer.restore(place) == {"w": 3}
        assert checkpointer.restore(place, args=None) == {"w": 3}
        assert checkpointer.restore(place, {"w": 0}) == {"w": 3}
        assert checkpointer.restore(place, item={"w": 0}) == {"w": 3}
        assert checkpointer.restore(place, a.PyTreeRestore({"w": 0})) == {"w": 3}


def test_items_of_a_composite_can_be_given_by_name(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(place, state=a.StandardSave({"w": 3}), config=a.JsonSave([1]))
        assert checkpointer.restore(place).config == [1]
        assert checkpointer.restore(place, args=None).state == {"w": 3}
        assert dict(checkpointer.restore(place, config=a.JsonRestore())) == {"config": [1]}


def test_the_standard_checkpointer_has_orbaxs_signatures(place):
    tree = {"w": np.arange(4.0), "n": 1}
    with hf.StandardCheckpointer() as checkpointer:
        how = {"w": a.SaveArgs(dtype=np.float32), "n": None}
        checkpointer.save(place, tree, save_args=how, custom_metadata={"run": 1})
        checkpointer.save(place, state={"w": np.arange(4), "n": 2}, force=True)
        found = checkpointer.restore(place, {"w": jax.ShapeDtypeStruct((4,), np.int32), "n": 0})
        assert found["n"] == 2
        with pytest.raises(ValueError, match=r"\[6\]"):
            checkpointer.restore(place, {"w": np.zeros(6, int), "n": 0})
        wider = checkpointer.restore(place, target={"w": np.zeros(6, int), "n": 0}, strict=False)
        assert wider["w"].tolist() == [0, 1, 2, 3, 0, 0]


def test_options_given_to_a_checkpointer_win_over_the_context(place):
    told = []
    outer = hf.Context(
        asynchronous=o.AsyncOptions(post_finalization_callback=lambda: told.append("outer")),
        array=o.ArrayOptions(saving=o.ArraySaveOptions(compression="zstd")),
    )
    inner = o.AsyncOptions(post_finalization_callback=lambda: told.append("inner"))
    with outer, hf.AsyncCheckpointer(hf.PyTreeCheckpointHandler(), async_options=inner) as one:
        one.save(f"{place}/1", {"w": 1})
        one.wait_until_finished()
    with outer, hf.StandardCheckpointer() as other:
        other.save(f"{place}/2", {"w": 1})
    assert told == ["inner", "outer"]


def test_options_of_a_handler_hold_for_its_items(tmp_path):
    zeros = {"w": np.zeros(300_000)}

    def size(path):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    with hf.PyTreeCheckpointer(use_compression=True) as checkpointer:
        checkpointer.save(tmp_path / "zstd", zeros)
    assert size(tmp_path / "zstd") < 200_000
    plain = hf.PyTreeCheckpointHandler(
        use_compression=False, save_concurrent_gb=1, restore_concurrent_gb=0.001,
        save_device_host_concurrent_gb="auto",
        memory_limit_options=o.MemoryLimitOptions(max_transfer_concurrent_gb=1),
    )  # fmt: skip
    compressing = o.ArrayOptions(saving=o.ArraySaveOptions(compression="zstd"))
    with hf.Checkpointer(plain, context=hf.Context(array=compressing)) as checkpointer:
        checkpointer.save(tmp_path / "raw", zeros)
        assert (checkpointer.restore(tmp_path / "raw")["w"] == 0).all()
    assert size(tmp_path / "raw") > 2_400_000


# --- in the background -----------------------------------------------------------------------


def test_a_destination_that_is_taken_is_told_at_once(place):
    hf.save(f"{place}/1", {"w": 1})
    with hf.StandardCheckpointer() as checkpointer:
        with pytest.raises(ValueError, match="force=True"):
            checkpointer.save(f"{place}/1", {"w": 2})
        checkpointer.wait_until_finished()
        checkpointer.save(f"{place}/1", {"w": 3}, force=True)
    assert hf.load(f"{place}/1") == {"w": 3}


def test_a_failure_in_the_background_is_told_once_with_its_cause(place, broken):
    checkpointer = hf.StandardCheckpointer()
    checkpointer.save(f"{place}/1", {"w": np.ones(3)})
    with pytest.raises(ConnectionError, match="the cable is out") as told:
        checkpointer.wait_until_finished()
    assert isinstance(told.value.__cause__, OSError)
    checkpointer.check_for_errors()
    checkpointer.wait_until_finished()
    assert not hf.is_checkpoint(f"{place}/1")
    checkpointer.save(f"{place}/1", {"w": np.ones(3)})
    checkpointer.close()
    assert hf.is_checkpoint(f"{place}/1")


def test_a_failure_is_told_by_the_next_save_which_is_not_begun(place, broken):
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{place}/1", {"w": np.ones(3)})
        with pytest.raises(ConnectionError) as told:
            checkpointer.save(f"{place}/2", {"w": np.ones(3)})
        assert "/1)" in told.value.__notes__[0]
        assert "/2 was not begun" in told.value.__notes__[1]
    assert not hf.is_checkpoint(f"{place}/2")


def test_a_failure_is_told_to_who_looks_and_to_nobody_else(place, broken):
    called = []
    options = o.AsyncOptions(post_finalization_callback=lambda: called.append(1))
    with hf.StandardCheckpointer(async_options=options) as checkpointer:
        checkpointer.save(place, {"w": np.ones(3)})
        checkpointer._saving.wait()
        answers = []
        threads = [threading.Thread(target=look, args=(checkpointer, answers)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["ConnectionError", "nothing", "nothing", "nothing"]
    assert called == []


def look(checkpointer, answers):
    try:
        checkpointer.check_for_errors()
    except ConnectionError:
        answers.append("ConnectionError")
    else:
        answers.append("nothing")


def test_an_error_in_the_block_is_not_hidden_by_one_of_the_save(place, broken):
    with pytest.raises(ZeroDivisionError) as told, hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, {"w": np.ones(3)})
        raise ZeroDivisionError
    assert told.value.__notes__ == ["a save failed as well: ConnectionError: the cable is out"]


def test_close_waits_tells_and_closes_whatever_happened(place, broken):
    checkpointer = hf.StandardCheckpointer()
    checkpointer.save(place, {"w": np.ones(3)})
    with pytest.raises(ConnectionError):
        checkpointer.close()
    checkpointer.close()
    for call in (checkpointer.save, checkpointer.restore, checkpointer.metadata):
        arguments = (place, {"w": 1}) if call == checkpointer.save else (place,)
        with pytest.raises(ValueError, match="closed"):
            call(*arguments)


def test_a_save_while_a_save_runs_waits_for_it(place, gate):
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{place}/1", {"w": np.ones(3)})
        second = threading.Thread(target=checkpointer.save, args=(f"{place}/2", {"w": np.zeros(3)}))
        second.start()
        assert not hf.is_checkpoint(f"{place}/1")
        checkpointer.check_for_errors()  # neither waits nor raises
        gate.set()
        second.join()
        assert hf.is_checkpoint(f"{place}/1")
    assert hf.is_checkpoint(f"{place}/2")


def test_restore_waits_for_the_save(place, gate):
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, {"w": 1})
        threading.Timer(0.1, gate.set).start()
        assert checkpointer.restore(place) == {"w": 1}


def test_cancel_stops_a_save_that_another_thread_waits_for_and_leaves_nothing(tmp_path, gate):
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "1", {"w": np.ones(100_000)})
        waiting = threading.Thread(target=checkpointer.wait_until_finished)
        waiting.start()
        checkpointer.cancel()
        waiting.join(60)
        assert not waiting.is_alive()
        gate.set()
        checkpointer.check_for_errors()
        checkpointer.cancel()
        assert list(tmp_path.iterdir()) == []
        checkpointer.save(tmp_path / "2", {"w": 1})
    assert hf.load(tmp_path / "2") == {"w": 1}


def test_cancel_does_not_swallow_an_earlier_failure(place, broken):
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, {"w": np.ones(3)})
        checkpointer._saving.wait()
        checkpointer.cancel()
        with pytest.raises(ConnectionError):
            checkpointer.check_for_errors()


@pytest.mark.parametrize("how", ["timeout_secs", "async_options"])
def test_a_save_that_takes_too_long_raises_and_nothing_is_visible(how, tmp_path, gate):
    given = {"timeout_secs": 0.1}
    if how == "async_options":
        given = {"async_options": o.AsyncOptions(timeout_secs=0.1)}
    checkpointer = hf.AsyncCheckpointer(hf.StandardCheckpointHandler(), **given)
    checkpointer.save(tmp_path / "1", {"w": np.ones(3)})
    with pytest.raises(TimeoutError, match=r"the save to .*1 took longer than 0.1 s"):
        checkpointer.wait_until_finished()
    assert list(tmp_path.iterdir()) == []
    gate.set()
    checkpointer.close()


def test_the_interpreter_waits_for_a_save_and_tells_what_nobody_was_told(tmp_path):
    script = f"""
import numpy as np, holdfast as hf
one, other = hf.StandardCheckpointer(), hf.StandardCheckpointer()
one.save({str(tmp_path / "1")!r}, {{"w": np.arange(1_000_000.0)}})
options = hf.options.FileOptions(skip_sync_file_validations=True)
late = hf.StandardCheckpointer(file_options=options)
other.save({str(tmp_path / "2")!r}, {{"w": 1}})
other.wait_until_finished()
late.save({str(tmp_path / "2")!r}, {{"w": 2}})
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("failed and nobody asked") == 1, ended.stderr
    assert "CommitConflictError" in ended.stderr
    assert hf.load(tmp_path / "1")["w"][-1] == 999_999
    assert hf.load(tmp_path / "2") == {"w": 1}


def test_a_failed_overwrite_leaves_the_old_checkpoint(place, broken):
    with hf.Checkpointer(hf.JsonCheckpointHandler()) as old:
        old.save(place, args=a.JsonSave({"old": 1}))
        with hf.StandardCheckpointer() as checkpointer:
            checkpointer.save(place, {"w": np.ones(3)}, force=True)
            with pytest.raises(ConnectionError):
                checkpointer.wait_until_finished()
            assert old.restore(place) == {"old": 1}
            checkpointer.save(place, {"w": np.ones(3)}, force=True)
    assert (hf.load(place)["w"] == 1).all()


# --- what they say of a checkpoint -----------------------------------------------------------


def test_a_tree_is_described_with_what_was_saved_beside_it(place):
    tree = {"layer": {"w": np.ones((2, 3), np.float32)}, "n": 3}
    with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        save = a.StandardSave(tree, custom_metadata={"of": "item"})
        checkpointer.save(place, args=save, custom_metadata={"of": "checkpoint"})
        found = checkpointer.metadata(place)
        assert isinstance(found, hf.StepMetadata)
        assert found.item_handlers.endswith(".StandardCheckpointHandler")
        assert found.custom_metadata == {"of": "checkpoint"}
        assert (found.metrics, found.performance_metrics) == ({}, {})
        assert found.init_timestamp_nsecs < found.commit_timestamp_nsecs
        assert found.init_timestamp <= found.commit_timestamp
        item = found.item_metadata
        assert isinstance(item, hf.TreeMetadata)
        assert item.custom_metadata == {"of": "item"}
        assert item["layer"]["w"].shape == item.tree["layer"]["w"].shape == (2, 3)
        assert (set(item), len(item), "n" in item, item.get("x")) == ({"layer", "n"}, 2, True, None)
        assert len(item.keys()) == len(item.values()) == len(item.items()) == 2
        shapes = jax.tree.map(lambda leaf: getattr(leaf, "shape", ()), item.tree)
        assert shapes == {"layer": {"w": (2, 3)}, "n": ()}
        restored = checkpointer.restore(place, item)
        assert (restored["layer"]["w"] == 1).all()
        again = jax.tree.map(lambda leaf: leaf, item)
        assert isinstance(again, hf.TreeMetadata)
        assert checkpointer.restore(place, args=a.StandardRestore(again))["n"] == 3


def test_items_are_described_by_name(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            place,
            args=a.Composite(
                state=a.StandardSave({"w": np.ones(3)}),
                config=a.JsonSave({"n": 1}),
                array=a.ArraySave(np.ones(2)),
                key=a.JaxRandomKeySave(jax.random.key(1)),
            ),
        )
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as fresh:
        found = fresh.metadata(place)
    assert set(found.item_handlers) == set(found.item_metadata) == {
        "state", "config", "array", "key",
    }  # fmt: skip
    assert found.item_metadata.state["w"].shape == (3,)
    assert found.item_metadata.config is None
    assert found.item_metadata["array"].shape == (2,)


def test_metrics_are_part_of_a_steps_description(place):
    with hf.training.Checkpointer(place) as run:
        run.save(1, {"w": 1}, metrics={"loss": 0.5})
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        assert checkpointer.metadata(f"{place}/1").metrics == {"loss": 0.5}
        assert checkpointer.restore(f"{place}/1").metrics == {"loss": 0.5}


def test_a_handler_that_does_not_fit_the_layout_says_so(place):
    with (
        hf.StandardCheckpointer() as flat,
        hf.Checkpointer(hf.CompositeCheckpointHandler()) as composite,
    ):
        flat.save(f"{place}/flat", {"w": 1})
        composite.save(f"{place}/named", args=a.Composite(state=a.StandardSave({"w": 1})))
        with pytest.raises(ValueError, match=r"no items.*StandardCheckpointHandler"):
            flat.wait_until_finished()
            composite.metadata(f"{place}/flat")
        assert flat.metadata(f"{place}/named").item_metadata is None
        assert set(flat.metadata(f"{place}/named").item_handlers) == {"state"}
        with pytest.raises(FileNotFoundError, match="holds no PyTree"):
            flat.restore(f"{place}/named")
        with pytest.raises(FileNotFoundError, match="no checkpoint is here"):
            flat.metadata(f"{place}/nothing")


def test_a_cancelled_response_is_nobodys_error(place, gate):
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(place, {"w": np.ones(3)})
        saving = checkpointer._saving
        checkpointer.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            saving.result()
        checkpointer.wait_until_finished()
