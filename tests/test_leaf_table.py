"""Every kind of leaf under every kind of target, through every entry point.

One table says what comes back; the same checkpoint and targets go through each way to save
and load.
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import holdfast as hf

LEAVES = {
    "array": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
    "array0": jnp.float32(2),
    "ints": jnp.arange(3, dtype=jnp.int32),
    "key": jax.random.key(1),
    "numpy": np.arange(6.0).reshape(2, 3),
    "numpy0": np.array(3.5),
    "generic": np.float32(1.5),
    "npint": np.int64(7),
    "int": 3,
    "bigint": 2**100,
    "float": 2.5,
    "bool": True,
    "complex": 1 + 2j,
    "str": "text",
    "bytes": b"raw",
    "none": None,
}


def shaped(dtype, sharding=None):
    def make(leaf):
        shape = () if isinstance(leaf, str | bytes) or leaf is None else np.shape(leaf)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return make


TARGETS = {
    "None": lambda leaf: None,
    "...": lambda leaf: ...,
    "same": lambda leaf: leaf,
    "jax": lambda leaf: jax.Array,
    "struct": shaped(np.float32),
    "placed": shaped(np.float32, SingleDeviceSharding(jax.devices()[3])),
    "ndarray": lambda leaf: np.ndarray,
    "zeros": lambda leaf: np.zeros(shaped(np.float32)(leaf).shape, np.float32),
    "int": lambda leaf: int,
    "float": lambda leaf: 0.0,
    "bool": lambda leaf: bool,
    "complex": lambda leaf: 0j,
    "str": lambda leaf: "",
    "bytes": lambda leaf: bytes,
    "float32": lambda leaf: np.float32,
    "shape": lambda leaf: jax.ShapeDtypeStruct((7,), np.float32),
    "bools": shaped(np.bool_),
    "key": lambda leaf: jax.random.key(0),
}

# What comes back: S as saved, . the placeholder, J a jax.Array, N a NumPy array, G a NumPy
# scalar, P a Python value of the target's type, K keys; x: the target does not fit; e: the
# value does not; p: JAX has no such dtype here.
TABLE = """
         None ... same jax struct placed ndarray zeros int float bool complex str bytes float32 shape bools key
array    S    .   J    J   J      J      N       N     x   x     x    x       x   x     x       x     x     x
array0   S    .   J    J   J      J      N       N     P   P     e    P       x   x     G       x     x     x
ints     S    .   J    J   J      J      N       N     x   x     x    x       x   x     x       x     x     x
key      S    .   K    K   x      x      x       x     x   x     x    x       x   x     x       x     x     K
numpy    S    .   N    p   J      J      N       N     x   x     x    x       x   x     x       x     x     x
numpy0   S    .   N    p   J      J      N       N     e   P     e    P       x   x     G       x     x     x
generic  S    .   G    J   J      J      N       N     e   P     e    P       x   x     G       x     x     x
npint    S    .   G    p   J      J      N       N     P   P     e    P       x   x     G       x     x     x
int      S    .   P    J   J      J      N       N     P   P     x    x       x   x     G       x     x     x
bigint   S    .   P    e   e      e      e       e     P   P     x    x       x   x     e       x     x     x
float    S    .   P    J   J      J      N       N     x   P     x    x       x   x     G       x     x     x
bool     S    .   P    J   x      x      N       x     x   x     P    x       x   x     x       x     J     x
complex  S    .   P    J   x      x      N       x     x   x     x    P       x   x     x       x     x     x
str      S    .   P    x   x      x      x       x     x   x     x    x       P   x     x       x     x     x
bytes    S    .   P    x   x      x      x       x     x   x     x    x       x   P     x       x     x     x
none     S    .   S    x   x      x      x       x     x   x     x    x       x   x     x       x     x     x
"""  # noqa: E501


def table():
    columns, *rows = [line.split() for line in TABLE.strip().splitlines()]
    return {
        column: {row[0]: row[1 + index] for row in rows} for index, column in enumerate(columns)
    }


EXPECTED = table()
_NUMBER = itertools.count()


def v0(handler, save, restore):
    def saving(place, tree):
        with hf.Checkpointer(handler()) as checkpointer:
            checkpointer.save(place, args=save(tree))

    def loading(place, target):
        with hf.Checkpointer(handler()) as checkpointer:
            return checkpointer.restore(place, args=restore(target))

    return saving, loading


def composite(place, target):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        args = hf.args.Composite(state=hf.args.PyTreeRestore(target))
        return checkpointer.restore(place, args=args).state


def saving_step(place, tree):
    with hf.training.Checkpointer(place) as checkpointer:
        checkpointer.save(5, tree)


def loading_step(place, target):
    with hf.training.Checkpointer(place) as checkpointer:
        return checkpointer.load(5, target)


ENTRIES = {
    "functions": (hf.save, hf.load),
    "standard": v0(hf.StandardCheckpointHandler, hf.args.StandardSave, hf.args.StandardRestore),
    "pytree": v0(hf.PyTreeCheckpointHandler, hf.args.PyTreeSave, hf.args.PyTreeRestore),
    "checkpointables": (
        lambda place, tree: hf.save_checkpointables(place, {"state": tree, "other": [1]}),
        lambda place, target: hf.load_checkpointables(place, {"state": target})["state"],
    ),
    "composite": (
        lambda place, tree: hf.save_checkpointables(place, {"state": tree}),
        composite,
    ),
    "training": (saving_step, loading_step),
}


@pytest.fixture(scope="module", params=ENTRIES)
def entry(request):
    """One way in: what it saved, and how it loads."""
    save, load = ENTRIES[request.param]
    if request.param == "standard":  # it restores text and bytes, and does not save them
        save = ENTRIES["pytree"][0]
    place = f"memory://table-{next(_NUMBER)}-{os.getpid()}/checkpoint"
    save(place, LEAVES)
    return lambda target: load(place, target)


def targets_for(column, names):
    """Targets of one kind for some leaves; the others are skipped."""
    make = TARGETS[column]
    return {name: make(leaf) if name in names else ... for name, leaf in LEAVES.items()}


def names_with(column, *codes):
    return [name for name, code in EXPECTED[column].items() if code in codes]


def raw(value):
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(value))
    return np.asarray(value)


KINDS = {"J": jax.Array, "K": jax.Array, "N": np.ndarray, "G": np.generic}


def check(found, leaf, code, target):
    """That a cell of the table is true."""
    if code == "." or leaf is None:
        assert found is (... if code == "." else None)
        return
    if code == "S" or target is leaf:
        kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
    else:
        wanted = target if isinstance(target, type) else type(target)
        kind = KINDS.get(code, wanted)
    assert isinstance(found, kind)
    if isinstance(leaf, str | bytes):
        assert found == leaf
        return
    if isinstance(target, jax.ShapeDtypeStruct | np.ndarray | jax.Array):
        assert found.dtype == target.dtype
        sharding = getattr(target, "sharding", None)
        assert sharding is None or found.sharding == sharding
    np.testing.assert_array_equal(raw(found), raw(leaf).astype(raw(found).dtype))


@pytest.mark.parametrize("column", TARGETS)
def test_what_fits_comes_back_as_the_table_says(entry, column):
    names = names_with(column, *"S.JNGPK")
    targets = targets_for(column, names)
    found = entry(targets)
    assert found.keys() == LEAVES.keys()
    for name in names:
        check(found[name], LEAVES[name], EXPECTED[column][name], targets[name])
    for name in LEAVES.keys() - set(names):
        assert found[name] is ...


@pytest.mark.parametrize("column", [c for c in TARGETS if names_with(c, "x")])
def test_all_that_does_not_fit_is_listed_in_one_error_whose_type_survives(entry, column):
    names = names_with(column, "x")
    with pytest.raises(hf.errors.TreeMismatchError) as caught:
        entry(targets_for(column, names))
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == [
        f"['{name}']" for name in sorted(names)
    ]


@pytest.mark.parametrize(
    ("column", "name"), [(c, name) for c in TARGETS for name in names_with(c, "e", "p")]
)
def test_a_value_that_does_not_fit_is_refused_with_its_leaf(entry, column, name):
    kinds = {"e": hf.errors.TreeMismatchError, "p": hf.errors.PlacementError}
    with pytest.raises(kinds[EXPECTED[column][name]], match=rf"\['{name}'\]"):
        entry(targets_for(column, [name]))


def test_a_leaf_that_was_not_saved_is_an_error_whatever_the_target(entry):
    for target in (..., None, 1, jax.Array, jax.ShapeDtypeStruct((2,), np.float32)):
        with pytest.raises(hf.errors.TreeMismatchError, match=r"\['gone'\].*not in the checkpoint"):
            entry({**dict.fromkeys(LEAVES, ...), "gone": target})


def test_without_a_target_everything_is_as_it_was(entry):
    found = entry(None)
    assert found.keys() == LEAVES.keys()
    for name, leaf in LEAVES.items():
        check(found[name], leaf, "S", None)


@pytest.mark.parametrize(("save", "load"), ENTRIES.values(), ids=ENTRIES)
def test_a_leaf_that_cannot_be_saved_is_refused_with_its_path_before_anything_is_there(
    tmp_path, save, load
):
    place = tmp_path / "c"
    with pytest.raises(hf.errors.UnsupportedLeafError, match=r"\['a'\]\['b'\].*object"):
        save(place, {"a": {"b": object()}, "ok": 1})
    assert not [path for path in place.rglob("*") if path.name != "_lease"]


@pytest.mark.parametrize(("save", "load"), ENTRIES.values(), ids=ENTRIES)
def test_damage_is_told_as_damage_with_file_and_leaf(tmp_path, save, load):
    place = tmp_path / "c"
    save(place, {"w": np.arange(200_000, dtype=np.float32)})
    data = max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(hf.errors.DamagedCheckpointError, match=r"\['w'\]") as caught:
        load(place, {"w": np.ndarray})
    assert caught.value.leaf == "['w']"
