"""Every option has an effect or is refused; contexts are copied, nested and never shared."""

import asyncio
import dataclasses
import os
import stat
import threading

import jax
import numpy as np
import pytest

import holdfast as hf
from holdfast_checkpointer.arrays.snapshot import snapshot_all, transfers
from holdfast_checkpointer.options import current

o = hf.options


def test_a_copy_of_a_context_keeps_what_is_not_given():
    first = hf.Context(
        array=o.ArrayOptions(saving=o.ArraySaveOptions(compression="zstd")), storage={"a": 1}
    )
    second = hf.Context(first, asynchronous=o.AsyncOptions(timeout_secs=5))
    assert second.array == first.array
    assert second.storage == {"a": 1}
    assert second.asynchronous.timeout_secs == 5
    assert first.asynchronous == o.AsyncOptions()
    assert first.replace(array=o.ArrayOptions()).storage == {"a": 1}
    assert hf.Context(first) == first


def test_a_nested_context_does_not_inherit_implicitly():
    outer = hf.Context(asynchronous=o.AsyncOptions(timeout_secs=5))
    with outer as entered:
        assert entered is outer is current()
        with hf.Context():
            assert current().asynchronous == o.AsyncOptions()
        assert current() is outer
    assert current() == hf.Context()


def test_one_context_may_be_entered_in_many_threads_and_twice_in_one():
    context = hf.Context(asynchronous=o.AsyncOptions(timeout_secs=5))
    together = threading.Barrier(4, timeout=60)
    seen = []

    def work():
        before = current()
        with context:
            together.wait()
            with context:
                seen.append(current() is context)
            seen.append(current() is context)
            together.wait()
        seen.append(current() == before == hf.Context())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 12


def test_an_entered_context_is_that_of_its_tasks_but_not_of_other_threads():
    context = hf.Context(asynchronous=o.AsyncOptions(timeout_secs=5))

    async def task():
        return current()

    async def main():
        with context:
            created = asyncio.ensure_future(task())
        return await created, current()

    inside, outside = asyncio.run(main())
    assert inside is context
    assert outside == hf.Context()
    found = []
    with context:
        thread = threading.Thread(target=lambda: found.append(current()))
        thread.start()
        thread.join()
    assert found == [hf.Context()]


def test_a_context_cannot_be_changed_and_names_the_new_name_of_an_old_option():
    context = hf.Context()
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.array = o.ArrayOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.array.saving.chunk_bytes = 5
    with pytest.raises(AttributeError, match="the name is 'asynchronous'"):
        _ = context.async_options
    with pytest.raises(TypeError, match="the name is 'array'"):
        hf.Context(array_options=o.ArrayOptions())
    with pytest.raises(TypeError, match="no option 'arrya'"):
        hf.Context(arrya=o.ArrayOptions())
    with pytest.raises(TypeError, match="array must be holdfast's options.ArrayOptions"):
        hf.Context(array=o.AsyncOptions())
    with pytest.raises(TypeError, match="must be a Context"):
        hf.Context({"array": o.ArrayOptions()})
    with pytest.raises(ValueError, match="checkpoint_layout must be one of 'auto'"):
        hf.Context(checkpoint_layout="parquet")


REFUSED = [
    (lambda: o.AsyncOptions(timeout_secs=0), "timeout_secs must be positive"),
    (lambda: o.AsyncOptions(post_finalization_callback=3), "post_finalization_callback"),
    (
        lambda: o.AsyncOptions(create_directories_asynchronously=False),
        "create_directories_asynchronously=False has no meaning here.*Accepted: True",
    ),
    (lambda: o.MultiprocessingOptions(primary_host=-1), "primary_host"),
    (lambda: o.MultiprocessingOptions(active_processes=set()), "active_processes"),
    (lambda: o.MultiprocessingOptions(active_processes={1}), "not among active_processes"),
    (lambda: o.MultiprocessingOptions(barrier_sync_key_prefix=1), "barrier_sync_key_prefix"),
    (lambda: o.PathwaysOptions(checkpointing_impl="x"), "checkpointing_impl='x'.*Accepted: None"),
    (lambda: o.FileOptions(path_permission_mode=0o555), "path_permission_mode.*0o555"),
    (lambda: o.FileOptions(path_permission_mode="rwx"), "path_permission_mode.*'rwx'"),
    (lambda: o.FileOptions(path_class=str), "path_class.*Accepted: None or etils.epath.Path"),
    (lambda: o.AtomicityOptions(mode="always"), "mode must be one of 'auto'"),
    (lambda: o.GcsDeletionOptions(todelete_full_path="x"), "todelete_full_path.*copy it"),
    (lambda: o.MemoryOptions(write_concurrent_bytes=0), "write_concurrent_bytes"),
    (lambda: o.MemoryOptions(read_concurrent_bytes=True), "read_concurrent_bytes"),
    (lambda: o.MemoryOptions(transfer_concurrent_bytes=1.5), "transfer_concurrent_bytes"),
    (lambda: o.MemoryOptions(is_prioritized_key_fn=len), "is_prioritized_key_fn.*None"),
    (lambda: o.MemoryOptions(serialization_status_callback=1), "serialization_status_callback"),
    (lambda: o.MemoryOptions(regulator_options=1), "regulator_options"),
    (lambda: o.MemoryOptions(expected_surge_bytes=1), "expected_surge_bytes"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_value_that_means_nothing_is_refused_in_words(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def tree():
    return {f"layer{i}": np.full(1000, float(i)) for i in range(4)}


def same(found, wanted):
    return found.keys() == wanted.keys() and all(np.array_equal(found[k], wanted[k]) for k in found)


SAVES = {
    "save": lambda path, context: hf.save(path, {"a": 1}, context=context),
    "save_async": lambda path, context: hf.save_async(path, {"a": 1}, context=context).result(),
    "save_checkpointables": lambda path, context: hf.save_checkpointables(
        path, {"state": {"a": 1}}, context=context
    ),
    "Checkpointer": lambda path, context: hf.Checkpointer(
        hf.StandardCheckpointHandler(), context=context
    ).save(path, {"a": 1}),
}


def save_in_background(path, context):
    with hf.AsyncCheckpointer(hf.StandardCheckpointHandler(), context=context) as checkpointer:
        checkpointer.save(path, {"a": 1})
        checkpointer.wait_until_finished()


def save_step(path, context):
    above, _, step = path.rpartition("/")
    with hf.training.Checkpointer(above, context=context) as checkpointer:
        checkpointer.save(int(step), {"a": 1})


SAVES |= {"AsyncCheckpointer": save_in_background, "training.Checkpointer": save_step}


@pytest.mark.parametrize("entry", SAVES)
def test_the_callback_is_called_after_the_commit_and_before_the_save_is_done(place, entry):
    seen = []
    path = f"{place}/7"
    told = o.AsyncOptions(post_finalization_callback=lambda: seen.append(hf.load(path)))
    SAVES[entry](path, hf.Context(asynchronous=told))
    assert seen == [{"a": 1}]


@pytest.mark.parametrize("entry", sorted(SAVES.keys() - {"training.Checkpointer"}))
def test_the_callback_is_not_called_after_a_failure(place, entry):
    hf.save(f"{place}/7", {"old": 1})
    seen = []
    told = o.AsyncOptions(post_finalization_callback=lambda: seen.append(1))
    with pytest.raises(FileExistsError):
        SAVES[entry](f"{place}/7", hf.Context(asynchronous=told))
    assert seen == []


def test_a_callback_that_fails_is_logged_and_the_checkpoint_is_there(place, caplog):
    def fail():
        raise ZeroDivisionError("mine")

    told = hf.Context(asynchronous=o.AsyncOptions(post_finalization_callback=fail))
    hf.save(place, {"a": 1}, context=told)
    assert hf.load(place) == {"a": 1}
    assert "the callback after the save to" in caplog.text
    assert "ZeroDivisionError: mine" in caplog.text


def test_many_callbacks_at_once_do_not_wait_for_each_other(place):
    together = threading.Barrier(9, timeout=60)

    def meet(path):
        together.wait()
        hf.load(path)

    responses = []
    for i in range(9):
        path = f"{place}/{i}"
        told = o.AsyncOptions(post_finalization_callback=lambda path=path: meet(path))
        responses.append(hf.save_async(path, tree(), context=hf.Context(asynchronous=told)))
    for response in responses:
        response.result(timeout=120)


@pytest.mark.parametrize("entry", SAVES)
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_directories_get_the_mode_that_was_asked_for(tmp_path, entry, umask):
    path = tmp_path / "run" / "7"
    before = os.umask(umask)
    try:
        SAVES[entry](str(path), hf.Context(file=o.FileOptions(path_permission_mode=0o2775)))
    finally:
        os.umask(before)
    folders = [path, *(found for found in path.rglob("*") if found.is_dir())]
    assert len(folders) > 2
    assert {oct(stat.S_IMODE(found.stat().st_mode)) for found in folders} == {"0o2775"}
    assert hf.load(path) == {"a": 1}


def test_a_store_without_directories_refuses_a_mode_for_them():
    context = hf.Context(file=o.FileOptions(path_permission_mode=0o750))
    with pytest.raises(NotImplementedError, match="path_permission_mode=0o750"):
        hf.save("memory://no-directories/c", {"a": 1}, context=context)


@pytest.mark.parametrize("entry", SAVES)
def test_another_way_to_commit_than_the_store_has_is_refused_before_anything(tmp_path, entry):
    renames = hf.Context(atomicity=o.AtomicityOptions(mode="atomic_rename"))
    records = hf.Context(atomicity=o.AtomicityOptions(mode=o.AtomicityMode.COMMIT_FILE))
    with pytest.raises(o_error(), match="mode='commit_file'.*by a rename.*'atomic_rename'"):
        SAVES[entry](str(tmp_path / "a" / "7"), records)
    assert not list(tmp_path.rglob("*"))
    SAVES[entry](str(tmp_path / "a" / "7"), renames)
    url = f"memory://{tmp_path.name}-{entry}/7".lower().replace("_", "-")
    with pytest.raises(o_error(), match="mode='atomic_rename'.*by its record.*'commit_file'"):
        SAVES[entry](url, renames)
    SAVES[entry](url, records)
    assert hf.load(url) == {"a": 1}


def o_error():
    return hf.errors.UnsupportedOptionError


@pytest.mark.parametrize("entry", SAVES)
def test_processes_that_the_job_does_not_have_are_refused(tmp_path, entry):
    for options in (
        o.MultiprocessingOptions(primary_host=1),
        o.MultiprocessingOptions(active_processes={0, 3}),
    ):
        with pytest.raises(ValueError, match="this job has 1: 0 to 0"):
            SAVES[entry](str(tmp_path / "7"), hf.Context(multiprocessing=options))
    assert not list(tmp_path.rglob("*"))
    mine = o.MultiprocessingOptions(
        primary_host=None, active_processes={0}, barrier_sync_key_prefix="mine"
    )
    SAVES[entry](str(tmp_path / "7"), hf.Context(multiprocessing=mine))


def test_memory_bounds_are_those_of_the_arrays(place):
    memory = o.MemoryOptions(write_concurrent_bytes=10_000, read_concurrent_bytes=9_000)
    context = hf.Context(memory=memory)
    assert context.array_saving.bytes_in_flight == 10_000
    assert context.array_loading.bytes_in_flight == 9_000
    lower = o.ArrayOptions(saving=o.ArraySaveOptions(bytes_in_flight=500))
    assert hf.Context(context, array=lower).array_saving.bytes_in_flight == 500
    hf.save(place, tree(), context=context)
    assert same(hf.load(place, context=context), tree())


def test_arrays_are_written_in_batches_of_the_bytes_given(tmp_path):
    """Each batch is a transaction of its own, which leaves a file of its own."""
    arrays = {f"layer{i}": np.random.default_rng(i).random(20_000) for i in range(4)}
    limit = o.MemoryOptions(write_concurrent_bytes=arrays["layer0"].nbytes)
    hf.save(tmp_path / "one", arrays)
    hf.save(tmp_path / "four", arrays, context=hf.Context(memory=limit))
    files = {n: len(list((tmp_path / n / "state" / "d").iterdir())) for n in ("one", "four")}
    assert files["four"] >= files["one"] + 3
    assert same(hf.load(tmp_path / "four"), arrays)


def test_what_is_on_the_way_from_devices_is_bounded():
    named = [(str(i), jax.numpy.zeros(250)) for i in range(7)]
    named.insert(3, ("large", jax.numpy.zeros(10_000)))
    named.insert(5, ("host", np.zeros(10_000)))  # is on no device
    batches = list(transfers(named, 2500))
    assert [item for batch in batches for item in batch] == named
    sizes = [sum(v.nbytes for _, v in batch if isinstance(v, jax.Array)) for batch in batches]
    assert sizes == [2000, 1000, 40_000, 2000, 2000]
    assert list(transfers(named, None)) == [named]


def test_a_bound_on_transfers_changes_nothing_that_is_saved(place):
    memory = o.MemoryOptions(transfer_concurrent_bytes=2500)
    saved = {f"layer{i}": jax.numpy.full(500, float(i)) for i in range(5)}
    hf.save(place, saved, context=hf.Context(memory=memory))
    assert same(hf.load(place), saved)


def test_host_arrays_are_not_copied_if_the_caller_leaves_them_alone():
    arrays = [("a", np.arange(10.0)), ("b", np.arange(10.0)[::2])]
    kept = snapshot_all(arrays, copy_host=False)
    assert np.shares_memory(kept[0].shards[0].data, arrays[0][1])
    assert not np.shares_memory(kept[1].shards[0].data, arrays[1][1])  # is not contiguous
    copied = snapshot_all(arrays)
    assert not np.shares_memory(copied[0].shards[0].data, arrays[0][1])


def test_arrays_that_are_not_copied_are_saved_as_they_are(place):
    memory = o.MemoryOptions(deepcopy_host_arrays=False)
    saved = {**tree(), "odd": np.arange(10.0)[::2], "big": np.arange(10.0, dtype=">f8")}
    hf.save(place, saved, context=hf.Context(memory=memory))
    assert same(hf.load(place), saved)


def test_the_run_of_a_checkpointer_keeps_its_own_context(tmp_path):
    mine = hf.Context(array=o.ArrayOptions(saving=o.ArraySaveOptions(compression="zstd")))
    other = hf.Context(atomicity=o.AtomicityOptions(mode="commit_file"))
    with other, hf.training.Checkpointer(tmp_path / "run", context=mine) as checkpointer:
        with other:
            assert checkpointer.save(1, {"w": np.zeros(100_000)})
        assert same(checkpointer.load(1), {"w": np.zeros(100_000)})
        with hf.Checkpointer(hf.StandardCheckpointHandler(), context=mine) as single:
            single.save(tmp_path / "single", {"w": np.zeros(100_000)})
        hf.save(tmp_path / "explicit", {"w": np.zeros(100_000)}, context=mine)
        with pytest.raises(NotImplementedError, match="commit_file"):
            hf.save(tmp_path / "ambient", {"a": 1})
    for name in ("run/1", "single", "explicit"):
        size = sum(f.stat().st_size for f in (tmp_path / name).rglob("*") if f.is_file())
        assert size < 100_000, name


def test_jax_is_asked_for_nothing_when_options_are_made(monkeypatch):
    def touched(*_):
        raise AssertionError("a device was asked for")

    monkeypatch.setattr(jax, "devices", touched)
    monkeypatch.setattr(jax, "process_count", touched)
    hf.Context(multiprocessing=o.MultiprocessingOptions(primary_host=3))
