"""What Orbax's v1 functions refuse, we refuse: with that type, and before anything is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf

e, a = hf.errors, hf.args


def two(path):
    """A checkpoint of two PyTrees and a JSON value."""
    hf.save_checkpointables(
        path, {"state": {"w": np.ones(3), "n": 1}, "other": {"x": 2}, "json": a.JsonSave([1])}
    )


SAVES = {
    "an unsupported leaf": (lambda p: hf.save(p, {"x": object()}), ValueError, r"\['x'\]"),
    "no item": (lambda p: hf.save_checkpointables(p, {}), ValueError, "empty"),
    "items in a list": (lambda p: hf.save_checkpointables(p, [1]), ValueError, "got list"),
    "items that are None": (lambda p: hf.save_checkpointables(p, None), ValueError, "NoneType"),
    "an empty name": (lambda p: hf.save_checkpointables(p, {"": 1}), ValueError, "name"),
    "metrics": (lambda p: hf.save_checkpointables(p, {"metrics": 1}), ValueError, "reserved"),
    "AUTO": (lambda p: hf.save(p, 1, checkpointable_name="AUTO"), ValueError, "reserved"),
    "a name with a slash": (lambda p: hf.save_checkpointables(p, {"a/b": 1}), ValueError, "a/b"),
    "an item that is None": (lambda p: hf.save_checkpointables(p, {"x": None}), ValueError, "'x'"),
    "a state that is None": (lambda p: hf.save(p, None), ValueError, "'state' is None"),
    "metadata JSON cannot hold": (
        lambda p: hf.save(p, 1, custom_metadata={"f": object()}), TypeError, r"\['f'\]",
    ),
    "metadata of another kind": (
        lambda p: hf.save(p, 1, custom_metadata=[1]), TypeError, "JSON object",
    ),
    "an object array": (lambda p: hf.save(p, {"x": np.array([{}])}), ValueError, "object"),
    "a text array": (lambda p: hf.save(p, {"x": np.array(["a"])}), ValueError, "<U1"),
    "no handler": (
        lambda p: hf.save_checkpointables(p, {"x": object()}), e.NoEntryError, "item 'x'",
    ),
    "JSON that is none": (
        lambda p: hf.save_checkpointables(p, {"x": a.JsonSave({1: 2})}), TypeError, "text keys",
    ),
}  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("case", SAVES)
def test_a_save_is_refused_before_anything_is_written(tmp_path, monkeypatch, case, asynchronous):
    call, kind, said = SAVES[case]
    if asynchronous:
        monkeypatch.setattr(hf, "save", hf.save_async)
        monkeypatch.setattr(hf, "save_checkpointables", hf.save_checkpointables_async)
    with pytest.raises(kind, match=said):
        call(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", SAVES)
def test_a_refused_overwrite_leaves_what_was_there(tmp_path, monkeypatch, case):
    two(tmp_path / "c")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for name in ("save", "save_checkpointables"):
        over = getattr(hf, name)
        monkeypatch.setattr(hf, name, lambda *x, over=over, **y: over(*x, overwrite=True, **y))
    call, kind, said = SAVES[case]
    with pytest.raises(kind, match=said):
        call(tmp_path / "c")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_an_occupied_destination_is_a_value_error(place):
    two(place)
    for kind in (ValueError, FileExistsError):
        with pytest.raises(kind, match="overwrite=True"):
            hf.save(place, {"a": 1})
        with pytest.raises(kind, match="overwrite=True"):
            hf.save_checkpointables_async(place, {"a": {"n": 1}}).result()


LOADS = {
    "an empty name": (lambda p: hf.load(p, checkpointable_name=""), ValueError, "name"),
    "a reserved name": (
        lambda p: hf.load(p, checkpointable_name="metrics"), ValueError, "reserved",
    ),
    "a name that is not there": (
        lambda p: hf.load(p, checkpointable_name="absent"), e.InvalidLayoutError, "'json', 'other'",
    ),
    "no name, with named items": (
        lambda p: hf.load(p, checkpointable_name=None), e.InvalidLayoutError, "itself",
    ),
    "an item that is no PyTree": (
        lambda p: hf.load(p, checkpointable_name="json"), e.InvalidLayoutError, "no PyTree",
    ),
    "targets in a list": (lambda p: hf.load_checkpointables(p, [1]), ValueError, "got list"),
    "targets that are false": (lambda p: hf.load_checkpointables(p, 0), ValueError, "got int"),
    "a target with an empty name": (
        lambda p: hf.load_checkpointables(p, {"": None}), ValueError, "name",
    ),
    "a target with a reserved name": (
        lambda p: hf.load_checkpointables(p, {"AUTO": None}), ValueError, "reserved",
    ),
    "a target that is not there": (
        lambda p: hf.load_checkpointables(p, {"absent": None}), KeyError, "'json', 'other'",
    ),
    "a target leaf that says nothing": (
        lambda p: hf.load(p, {"w": object(), "n": 1}), TypeError, r"\['w'\].*type object",
    ),
    "another structure": (lambda p: hf.load(p, {"w": np.ones(3)}), ValueError, r"\['n'\]"),
    "another shape": (
        lambda p: hf.load(p, {"w": jax.ShapeDtypeStruct((4,), float), "n": 1}), ValueError,
        r"\['w'\].*\[4\].*\[3\]",
    ),
    "a number over an array": (lambda p: hf.load(p, {"w": 1.0, "n": 1}), ValueError, r"\['w'\]"),
    "an argument there is not": (lambda p: hf.load(p, cast="never"), ValueError, "cast"),
    "the metadata of an absent item": (lambda p: hf.metadata(p, "no"), ValueError, "'json'"),
    "the metadata of a flat one": (lambda p: hf.metadata(p, None), e.InvalidLayoutError, "itself"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "c"
    two(path)
    return path


@pytest.mark.parametrize("case", LOADS)
def test_a_load_is_refused_with_the_type_that_orbax_has(saved, case):
    call, kind, said = LOADS[case]
    with pytest.raises(kind, match=said):
        call(saved)


@pytest.mark.parametrize("case", LOADS)
def test_a_load_in_the_background_keeps_the_type_of_an_error(saved, monkeypatch, case):
    monkeypatch.setattr(hf, "load", lambda *x, **y: hf.load_async(*x, **y).result())
    monkeypatch.setattr(
        hf, "load_checkpointables", lambda *x: hf.load_checkpointables_async(*x).result()
    )
    call, kind, said = LOADS[case]
    with pytest.raises(kind, match=said):
        call(saved)


ABSENT = {
    "load": hf.load,
    "load_checkpointables": hf.load_checkpointables,
    "metadata": hf.metadata,
    "checkpointables_metadata": hf.checkpointables_metadata,
    "delete": hf.delete,
    "deletion of an item": lambda p: hf.delete(p, checkpointable_name="state"),
}


@pytest.mark.parametrize("call", ABSENT)
def test_no_checkpoint_is_a_layout_error_a_value_error_and_a_missing_file(place, call):
    hf.save(f"{place}/run/1", {"a": 1})
    for where in ("nothing", "run", "run/1/state"):
        for kind in (FileNotFoundError, ValueError, e.InvalidLayoutError):
            with pytest.raises(kind):
                ABSENT[call](f"{place}/{where}")
        assert not hf.is_checkpoint(f"{place}/{where}")
    assert hf.load(f"{place}/run/1") == {"a": 1}


def test_what_has_no_names_is_not_described_by_name(place):
    with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(place, {"a": 1})
    for call in (hf.checkpointables_metadata, hf.load_checkpointables):
        with pytest.raises(e.InvalidLayoutError, match="without a name|unnamed"):
            call(place)


def test_a_mistake_is_the_same_error_through_every_entry_point(tmp_path):
    """Defect 10: Orbax's `load_checkpointables` makes a KeyError of everything."""
    run, flat = tmp_path / "run", tmp_path / "flat"
    target = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with hf.training.Checkpointer(run) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)})
        with hf.Checkpointer(hf.StandardCheckpointHandler()) as single:
            single.save(flat, {"w": jnp.ones(3)})
            for load in (
                lambda: hf.load(run / "1", target),
                lambda: hf.load_async(run / "1", target).result(),
                lambda: hf.load_checkpointables(run / "1", {"state": target}),
                lambda: hf.load_checkpointables_async(run / "1", {"state": target}).result(),
                lambda: checkpointer.load(1, target),
                lambda: single.restore(flat, target),
            ):
                with pytest.raises(e.TreeMismatchError, match=r"\[4\]") as caught:
                    load()
                assert not isinstance(caught.value, KeyError)


def test_an_interrupt_is_never_made_an_error_of_ours(tmp_path, monkeypatch):
    hf.save(tmp_path / "c", {"a": np.ones(3)})

    class Interrupting(hf.handlers.JsonHandler):
        def is_abstract_handleable(self, abstract_checkpointable):
            raise MemoryError("mine")

    registry = hf.handlers.local_registry(include_global_registry=False).add(Interrupting)
    context = hf.Context(checkpointables=hf.options.CheckpointablesOptions(registry=registry))
    with pytest.raises(MemoryError, match="mine"):
        hf.load_checkpointables(tmp_path / "c", {"state": {"a": 1}}, context=context)
