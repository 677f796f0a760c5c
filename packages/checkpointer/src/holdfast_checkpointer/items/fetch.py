"""Reading what is wanted of an item, and making the leaves of the result."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays import place, plan
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.read import ArrayRequest, ArraySource
from holdfast_checkpointer.bursts import uncollected
from holdfast_checkpointer.errors import PlacementError, TreeMismatchError
from holdfast_checkpointer.items.stored import StoredItem
from holdfast_checkpointer.sharding import sharding_from_json
from holdfast_checkpointer.trees.match import Want, dtype_problem, shape_problem
from holdfast_checkpointer.trees.paths import show
from holdfast_metadata import LeafSpec, decode_scalar, dtype_from_name, dtype_name

_log = logging.getLogger(__name__)
_INLINE = ("int", "float", "bool", "complex", "str", "bytes", "np.generic")


@dataclass(frozen=True)
class Placing:
    """Where arrays go that name no place, taken from the caller's thread.

    Attributes:
        default: Where an array goes whose saved sharding does not fit here.
        fallback: What the caller asked for instead, if anything.
        x64: Whether JAX holds 64-bit types in the caller's thread.
        unsafe: Whether any cast is allowed.
    """

    default: Any
    fallback: Any = None
    x64: bool = False
    unsafe: bool = False

    @classmethod
    def of_caller(cls, *, fallback: Any = None, unsafe: bool = False) -> Placing:
        """Captures the caller's thread."""
        default: Any = jax.config.values["jax_default_device"]
        if default is None or isinstance(default, str):
            default = jax.local_devices(backend=default)[0]
        x64 = _x64_enabled()
        return cls(jax.sharding.SingleDeviceSharding(default), fallback, x64, unsafe)


async def fetch(
    item: StoredItem, wants: Sequence[Want], placing: Placing, options: ArrayLoadOptions
) -> list[Any]:
    """Makes the leaves that are wanted, in order.

    Raises:
        DamagedCheckpointError: Bytes differ from what was saved; names the leaf.
        PlacementError: A dtype or place is not to be had here.
        TreeMismatchError: An array of Orbax's turns out not to fit the target.
    """
    reader = item.reader(options)
    stored = [want for want in wants if _is_stored(want)]
    if not item.ours:
        stored = await _with_shapes(reader, stored, unsafe=placing.unsafe)
    places = _Places(placing)
    with uncollected():
        placements = [places.of(want) for want in stored]
        requests = [
            _request(item, want, placement)
            for want, placement in zip(stored, placements, strict=True)
        ]
    places.report()
    read = await reader.read(requests)
    shapes = [_physical_shape(want) for want in stored]
    with uncollected(), _x64(placing.x64):
        arrays = iter(
            [
                _finish(want, array)
                for want, array in zip(stored, place.place(read, placements, shapes), strict=True)
            ]
        )
    return [next(arrays) if _is_stored(want) else _inline(want) for want in wants]


def _x64_enabled() -> bool:
    """Whether JAX holds 64-bit types in this thread, by what it makes of one."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


@contextlib.contextmanager
def _x64(enabled: bool) -> Iterator[None]:
    """The caller's 64-bit mode: JAX keeps it per thread."""
    if _x64_enabled() == enabled:
        yield
        return
    with jax.enable_x64(enabled):
        yield


def _is_stored(want: Want) -> bool:
    return want.spec is not None and (want.spec.kind not in _INLINE or want.spec.value is None)


def _inline(want: Want) -> Any:
    if want.form == "skip":
        return ...
    if want.spec is None:
        return None
    value = decode_scalar(want.spec.kind, want.spec.value)
    if want.form in ("saved", "python"):
        return _as_python(value, want) if want.form == "python" else value
    array = np.asarray(value)
    if want.dtype is not None:
        array = array.astype(want.dtype)
    if want.form == "generic":
        return array[()]
    return jax.device_put(array, want.sharding) if want.form == "jax" else array


def _as_python(value: Any, want: Want) -> Any:
    python = {"int": int, "float": float, "bool": bool, "complex": complex}.get(want.python)
    if python is None:
        return value
    made = python(value.item() if hasattr(value, "item") else value)
    if made != value and made == made:
        raise TreeMismatchError([f"{show(want.path)}: {value!r} is no exact {want.python}"])
    return made


async def _with_shapes(reader: ArraySource, wants: Sequence[Want], *, unsafe: bool) -> list[Want]:
    """Fills in what only Orbax's arrays themselves say, and compares it with the target."""
    found, problems = [], []
    names = [(str(want.spec.name), show(want.path)) for want in wants if want.spec is not None]
    told = await reader.describe_all(names)
    for want, array in zip(wants, told, strict=True):
        assert want.spec is not None
        shape = array.shape
        if want.spec.kind == "prng_key":
            shape = shape[: len(shape) - _key_rank(str(want.spec.key_impl))]
        spec = dataclasses.replace(want.spec, shape=shape, dtype=dtype_name(array.dtype))
        problem = shape_problem(shape, want.shape)
        if problem is None and want.dtype is not None:
            problem = dtype_problem(array.dtype, want.dtype, unsafe=unsafe)
        if problem:
            problems.append(f"{show(want.path)}: {problem}")
        found.append(dataclasses.replace(want, spec=spec))
    if problems:
        raise TreeMismatchError(problems)
    return found


def _key_rank(impl: str) -> int:
    return int(jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).ndim)


def _physical_shape(want: Want) -> plan.Shape:
    """The shape on disk: a PRNG key has its data behind it."""
    spec = want.spec
    assert spec is not None
    if spec.kind == "prng_key":
        data = jax.eval_shape(
            lambda: jax.random.key_data(jax.random.key(0, impl=str(spec.key_impl)))
        )
        return (*(spec.shape or ()), *data.shape)
    return spec.shape or ()


def _stored_dtype(spec: LeafSpec) -> np.dtype[Any]:
    if spec.kind == "prng_key":
        return np.dtype(np.uint32)
    return dtype_from_name(str(spec.dtype))


def _request(item: StoredItem, want: Want, placement: place.Placement) -> ArrayRequest:
    spec = want.spec
    assert spec is not None
    shape = _physical_shape(want)
    regions = place.regions_for(placement.sharding, shape) if placement.sharding else None
    digests = item.digests.get(str(spec.name))
    return ArrayRequest(
        name=str(spec.name),
        leaf=show(want.path),
        shape=shape,
        dtype=dtype_name(_stored_dtype(spec)),
        storage_dtype=spec.storage_dtype,
        chunk_shape=digests.chunk_shape if digests else None,
        digests=digests.digests if digests else None,
        regions=regions,
        writable=placement.sharding is None,
    )


class _Places:
    """Decides where each array goes, and says once what had to go elsewhere."""

    def __init__(self, placing: Placing) -> None:
        self._placing = placing
        self._devices = jax.devices()
        self._moved: list[str] = []

    def of(self, want: Want) -> place.Placement:
        """The placement of one leaf."""
        spec = want.spec
        assert spec is not None
        form = want.form
        if form == "saved":
            form = "jax" if spec.kind in ("jax.Array", "prng_key") else "numpy"
        dtype = _stored_dtype(spec)
        if want.dtype is not None and spec.kind != "prng_key":
            dtype = np.dtype(want.dtype)
        if form != "jax":
            return place.Placement(None, dtype)
        self._check_x64(want, dtype)
        weak = want.form == "saved" and spec.weak_type
        sharding = self._sharding(want, spec)
        _check_fits(want, sharding)
        return place.Placement(sharding, dtype, weak)

    def _sharding(self, want: Want, spec: LeafSpec) -> Any:
        if want.sharding is not None:
            return _for_data(want.sharding, spec)
        saved = sharding_from_json(spec.sharding, self._devices)
        if saved is not None and spec.sharding is not None:
            return saved
        if self._placing.fallback is not None:
            return _for_data(self._placing.fallback, spec)
        self._moved.append(show(want.path))
        return self._placing.default

    def _check_x64(self, want: Want, dtype: np.dtype[Any]) -> None:
        with _x64(self._placing.x64):
            held = jax.dtypes.canonicalize_dtype(dtype)
        if held != dtype:
            raise PlacementError(
                f"{show(want.path)} is {dtype}, which JAX would silently make {held}: set "
                f"jax_enable_x64, or ask for {held} (or np.ndarray) in the target"
            )

    def report(self) -> None:
        """Logs what was placed on the default device."""
        if self._moved:
            _log.info(
                "%d arrays, as %s, go to %s: their saved sharding is unknown or does not fit "
                "the devices here",
                len(self._moved),
                self._moved[0],
                self._placing.default,
            )


def _check_fits(want: Want, sharding: Any) -> None:
    shape = _physical_shape(want)
    try:
        sharding.shard_shape(shape)
    except (ValueError, IndexError, AttributeError) as error:
        raise PlacementError(
            f"{show(want.path)} of shape {list(shape)} cannot be placed as {sharding}: {error}"
        ) from error


def _for_data(sharding: Any, spec: LeafSpec) -> Any:
    """The sharding of a PRNG key's data: the key's own, and the data's axes whole."""
    if isinstance(sharding, jax.Device):
        return jax.sharding.SingleDeviceSharding(sharding)
    if spec.kind == "prng_key" and isinstance(sharding, jax.sharding.NamedSharding):
        rank = len(spec.shape or ())
        parts = (*sharding.spec, *([None] * (rank - len(sharding.spec))), None)
        spec_of_data = jax.sharding.PartitionSpec(*parts)  # type: ignore[no-untyped-call]
        return jax.sharding.NamedSharding(sharding.mesh, spec_of_data)
    return sharding


def _finish(want: Want, array: Any) -> Any:
    spec = want.spec
    assert spec is not None
    if spec.kind == "prng_key":
        return jax.random.wrap_key_data(array, impl=str(spec.key_impl))
    if want.form == "python" or (want.form == "saved" and spec.kind == "scalar"):
        if array.shape != ():
            raise TreeMismatchError(
                [f"{show(want.path)}: an array {list(array.shape)} is no scalar"]
            )
        value = array.item() if hasattr(array, "item") else array
        return _as_python(value, want) if want.form == "python" else value
    return array[()] if want.form == "generic" else array
