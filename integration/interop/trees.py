"""The trees that both libraries must agree on, and a comparison that forgives nothing.

Every tree is made from a fixed seed, so that a writer and a reader in two processes can
each make it. Values are incompressible: data that shrinks hides in Orbax's inline values.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

MIB = 1 << 20
DTYPES = (
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16"),
    *("float32", "complex64", "int2", "int4", "float4_e2m1fn", "float8_e4m3fn", "float8_e5m2"),
    *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e3m4", "float8_e8m0fnu"),
)
NUMPY_DTYPES = (*DTYPES, "int64", "uint64", "float64", "complex128")
Point = collections.namedtuple("Point", "x y")
Empty = collections.namedtuple("Empty", "")


@flax.struct.dataclass
class State:
    step: int
    params: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A tree, and what Orbax makes of it when nobody tells it what to expect.

    Attributes:
        tree: What is saved.
        plain: The same in the containers and leaves that Orbax's files can name.
        targeted: What Orbax returns when told to expect `tree`; by default just that.
    """

    tree: Any
    plain: Any
    targeted: Any = None

    @property
    def expected(self) -> Any:
        """What a load with a target gives."""
        return self.tree if self.targeted is None else self.targeted


def same(tree: Any) -> Case:
    """A tree of dicts and lists, which Orbax returns as it was."""
    return Case(tree, tree)


def random_array(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array whose bytes do not compress."""
    dtype = np.dtype(dtype)
    generator = np.random.default_rng(seed)
    if dtype.kind in "fc" and dtype.itemsize >= 4:
        return generator.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if dtype.itemsize == 1 and dtype.kind == "V":  # int4 and the like: values that exist
        return generator.integers(0, 2, shape).astype(np.float32).astype(dtype)
    return np.frombuffer(generator.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def mesh() -> Mesh:
    """Eight devices in two named axes."""
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))


def placed(seed: int, shape: tuple[int, ...], *spec: Any, dtype: Any = np.float32) -> jax.Array:
    """A random array over the mesh."""
    sharding = NamedSharding(mesh(), PartitionSpec(*spec))
    return jax.device_put(random_array(seed, shape, dtype), sharding)


def core() -> Case:
    return same(
        {
            "params": {
                "dense": {"kernel": jnp.asarray(random_array(1, (64, 32)))},
                "bias": jnp.asarray(random_array(2, (7,))),
            },
            "layers": [jnp.asarray(random_array(i, (300,))) for i in range(12)],
            "numpy": random_array(3, (40, 50)),
            "fortran": np.asfortranarray(random_array(4, (3, 200))),
            "step": 7,
            "rate": 0.1,
            "nothing": None,
            "no keys": {},
            "no items": [],
        }
    )


def large() -> Case:
    """Leaves and shards of several chunks: holdfast cuts at 16 MiB."""
    halves = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("half",)), PartitionSpec("half"))
    return same(
        {
            "jax": jnp.asarray(random_array(10, (5, MIB))),
            "numpy": random_array(11, (2_200_001,), np.float64),
            "shards": jax.device_put(random_array(12, (2 * 17, MIB // 4)), halves),
        }
    )


def sharded() -> Case:
    return same(
        {
            "rows": placed(21, (64, 48), "x"),
            "both": placed(22, (64, 48), "x", "y"),
            "columns": placed(23, (8, 640), None, "y"),
            "joint": placed(24, (64, 24), ("x", "y")),
            "replicated": placed(20, (16, 24)),
            "scalar": placed(25, ()),
            "one device": jax.device_put(random_array(26, (33,)), jax.devices()[3]),
        }
    )


def prng_keys() -> Case:
    batch = jax.random.split(jax.random.key(5), 8)
    return same(
        {
            "threefry": jax.random.key(1),
            "rbg": jax.random.key(2, impl="rbg"),
            "unsafe_rbg": jax.random.key(3, impl="unsafe_rbg"),
            "batch": jax.random.split(jax.random.key(4), 6).reshape(2, 3),
            "sharded": jax.device_put(batch, NamedSharding(mesh(), PartitionSpec("x"))),
            "raw": jax.random.PRNGKey(6),
        }
    )


def scalars() -> Case:
    return same(
        {
            "zero": 0,
            "negative": -(2**63),
            "long": 2**63 - 1,
            "unsigned": 2**64 - 1,
            "fraction": 0.1,
            "minus zero": -0.0,
            "nan": math.nan,
            "infinity": -math.inf,
            "yes": True,
            "no": False,
        }
    )


def numpy_scalars() -> Case:
    """Orbax has no NumPy scalars: they come back as Python numbers, or as told, in arrays."""
    tree = {"f": np.float32(0.1), "i": np.int8(-3), "b": np.bool_(True), "c": np.uint16(9)}
    plain = {key: value.item() for key, value in tree.items()}
    return Case(tree, plain, {key: np.asarray(value) for key, value in tree.items()})


def strings() -> Case:
    return same(
        {
            "plain": "text",
            "empty": "",
            "greek": 'κόσμε \N{GRINNING FACE} \x00 "quoted" \\ /',
            "with/slash": "nested in the file",
            "in": {"a": {"list": ["of", "texts"]}},
            "beside": jnp.asarray(random_array(30, (400,))),
        }
    )


def odd_names() -> Case:
    """Names whose base64 needs padding, `-` and `_`; names that look like files or paths."""
    names = [
        "b",
        "ab",
        "abc",
        "ÿ?>",
        ">>>",
        "ÿÿÿ~",
        "with space",
        'quo"te',
        "back\\slash",
        "#",
        ".dot",
    ]
    names += ["a/b", "..", "größe", "日本", "x" * 300, "_METADATA", "zarr.json", "c", "~1", "%2e"]
    return same(
        {name: jnp.asarray(random_array(40 + i, (300 + i,))) for i, name in enumerate(names)}
    )


def containers() -> Case:
    leaves = [random_array(60 + i, (260,)) for i in range(8)]
    a, b, c, d, e, f, g, h = map(jnp.asarray, leaves)
    tree = {
        "tuple": (a, (b,)),
        "point": Point(c, 4),
        "state": State(step=3, params={"w": d}),
        "numbers": {0: e, 10: f},
        "ordered": collections.OrderedDict([("z", g), ("y", h)]),
        "no tuple": (),
        "empty": Empty(),
        "deep": [[[]], [{}], [None]],
    }
    plain = {
        "tuple": [a, [b]],
        "point": {"x": c, "y": 4},
        "state": {"step": 3, "params": {"w": d}},
        "numbers": {"0": e, "10": f},
        "ordered": {"z": g, "y": h},
        "no tuple": (),
        "empty": None,
        "deep": [[[]], [{}], [None]],
    }
    return Case(tree, plain)


def optimizer() -> Case:
    """What users save: parameters and the state of a chained optimizer."""
    params = {
        "w": jnp.asarray(random_array(70, (30, 20))),
        "b": jnp.asarray(random_array(71, (20,))),
    }
    state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    adam = state[1][0]
    inner = {"count": adam.count, "mu": dict(adam.mu), "nu": dict(adam.nu)}
    return Case(
        {"params": params, "opt": state}, {"params": params, "opt": [None, [inner, None, None]]}
    )


def bare_jax() -> Case:
    return same(jnp.asarray(random_array(80, (900,))))


def bare_numpy() -> Case:
    return same(random_array(81, (900,)))


def bare_number() -> Case:
    return same(41)


def dtypes() -> Case:
    shape = (33, 9)
    tree: dict[str, Any] = {}
    for i, name in enumerate(DTYPES):
        tree[f"jax {name}"] = jnp.asarray(random_array(100 + i, shape, _dtype(name)))
    for i, name in enumerate(NUMPY_DTYPES):
        tree[f"numpy {name}"] = random_array(200 + i, shape, _dtype(name))
    return same(tree)


def zeros() -> Case:
    """A chunk equal to the fill value must still be stored."""
    return same(
        {
            "jax": jnp.zeros((600,)),
            "numpy": np.zeros((600,)),
            "large": np.zeros((200_000,)),
            "sharded": jax.device_put(
                np.zeros((16, 40), np.float32), NamedSharding(mesh(), PartitionSpec("x", "y"))
            ),
            "number": 0,
        }
    )


def many() -> Case:
    return same({f"layer_{i:04}": {"w": jnp.asarray(random_array(i, (8, 8)))} for i in range(150)})


CASES: dict[str, Callable[[], Case]] = {
    made.__name__: made
    for made in (
        *(core, large, sharded, prng_keys, scalars, numpy_scalars, strings, odd_names, containers),
        *(optimizer, bare_jax, bare_numpy, bare_number, dtypes, zeros, many),
    )
}


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def blank(tree: Any) -> Any:
    """A target for `tree` that holds none of its values."""
    return jax.tree.map(_blank, tree)


def _blank(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    if isinstance(leaf, np.ndarray | np.generic):
        return np.zeros_like(leaf)
    return type(leaf)()


def elsewhere(tree: Any) -> Any:
    """The same arrays with each on another arrangement of devices; also their blanks' values."""
    other = Mesh(np.array(jax.devices()[::-1][:2]), ("z",))

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        splits = leaf.ndim and leaf.shape[0] % 2 == 0
        spec = PartitionSpec("z") if splits else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(other, spec))

    return jax.tree.map(move, tree)


def differences(found: Any, expected: Any) -> list[str]:
    """Every way in which `found` is not exactly `expected`; empty if none."""
    found_leaves, found_tree = _flatten(found)
    leaves, tree = _flatten(expected)
    if found_tree != tree:
        return [f"structure: found {found_tree}, expected {tree}"[:2000]]
    return [
        f"{jax.tree_util.keystr(path)}: {problem}"
        for (path, a), (_, b) in zip(found_leaves, leaves, strict=True)
        if (problem := _difference(a, b))
    ]


def _flatten(tree: Any) -> Any:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is None)


def _difference(found: Any, expected: Any) -> str:
    if isinstance(expected, jax.Array) != isinstance(found, jax.Array):
        return f"found a {type(found).__name__}, expected a {type(expected).__name__}"
    if not isinstance(expected, jax.Array) and type(found) is not type(expected):
        return f"found a {type(found).__name__}, expected a {type(expected).__name__}"
    if isinstance(expected, jax.Array):
        if _place(found.sharding) != _place(expected.sharding):
            return f"found {found.sharding}, expected {expected.sharding}"
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            if found.dtype != expected.dtype:
                return f"found {found.dtype}, expected {expected.dtype}"
            found, expected = jax.random.key_data(found), jax.random.key_data(expected)
        found, expected = np.asarray(found), np.asarray(expected)
    if isinstance(expected, np.ndarray | np.generic):
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            return f"found {found.dtype}{found.shape}, expected {expected.dtype}{expected.shape}"
        return "" if found.tobytes() == expected.tobytes() else "other values"
    return "" if repr(found) == repr(expected) else f"found {found!r}, expected {expected!r}"


def _place(sharding: Any) -> Any:
    """A sharding as a value: one device is one device, however it is called."""
    if len(sharding.device_set) == 1:
        return SingleDeviceSharding(next(iter(sharding.device_set)))
    return sharding
