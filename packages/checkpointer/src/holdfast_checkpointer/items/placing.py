"""Where arrays go: what the target says, or where they were, or what the caller prefers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays import place, plan
from holdfast_checkpointer.errors import PlacementError
from holdfast_checkpointer.sharding import sharding_from_json
from holdfast_checkpointer.trees.match import Want
from holdfast_checkpointer.trees.paths import show
from holdfast_metadata import LeafSpec, dtype_from_name

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placing:
    """Where arrays go that name no place, taken from the caller's thread.

    Attributes:
        default: Where an array goes whose saved sharding does not fit here.
        fallback: What the caller asked for instead, if anything.
        x64: Whether JAX holds 64-bit types in the caller's thread.
        unsafe: Whether any cast is allowed.
        mesh: The mesh that is set in the caller's thread, for targets that name an abstract
            one; None if there is none.
    """

    default: Any
    fallback: Any = None
    x64: bool = False
    unsafe: bool = False
    mesh: Any = None

    @classmethod
    def of_caller(cls, *, fallback: Any = None, unsafe: bool = False) -> Placing:
        """Captures the caller's thread."""
        default: Any = jax.config.values["jax_default_device"]
        if default is None or isinstance(default, str):
            default = jax.local_devices(backend=default)[0]
        return cls(
            default=jax.sharding.SingleDeviceSharding(default),
            fallback=fallback,
            x64=x64_enabled(),
            unsafe=unsafe,
            mesh=_mesh(),
        )


def _mesh() -> jax.sharding.Mesh | None:
    """The mesh that is set; None if there is none, as while a function is traced."""
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:
        return None
    return None if mesh.empty else mesh


def x64_enabled() -> bool:
    """Whether JAX holds 64-bit types in this thread, by what it makes of one."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


@contextlib.contextmanager
def x64_as(enabled: bool) -> Iterator[None]:
    """The caller's 64-bit mode: JAX keeps it per thread."""
    if x64_enabled() == enabled:
        yield
        return
    with jax.enable_x64(enabled):
        yield


class Places:
    """Decides where each array goes, and says once what had to go elsewhere."""

    def __init__(self, placing: Placing) -> None:
        self._placing = placing
        self._devices = jax.devices()
        self._several = jax.process_count() > 1
        self._homeless: list[str] = []
        self._moved: list[str] = []
        self._held: dict[np.dtype[Any], np.dtype[Any]] = {}

    def of(self, want: Want) -> place.Placement:
        """The placement of one leaf.

        Raises:
            PlacementError: A dtype or place is not to be had here.
        """
        spec = want.spec
        assert spec is not None
        form = want.form
        if form == "saved":
            form = "jax" if spec.kind in ("jax.Array", "prng_key") else "numpy"
        dtype = stored_dtype(spec)
        if want.dtype is not None and spec.kind != "prng_key":
            dtype = np.dtype(want.dtype)
        if form != "jax":
            return place.Placement(None, dtype)
        self.check_held(want, dtype)
        weak = want.form == "saved" and spec.weak_type
        sharding = self.sharding(want, spec)
        _check_fits(want, sharding)
        return place.Placement(sharding, dtype, weak, _layout(want))

    def sharding(self, want: Want, spec: LeafSpec) -> Any:
        """Where one `jax.Array` goes."""
        if want.sharding is not None:
            return self._concrete(want, _for_data(want.sharding, spec))
        saved = sharding_from_json(spec.sharding, self._devices)
        if saved is not None:  # one alike on all processes: a fallback for some would differ
            return saved if _has_a_part_here(saved) else self._placing.default
        if self._placing.fallback is not None:
            return self._concrete(want, _for_data(self._placing.fallback, spec))
        if self._several and spec.sharding is not None:
            self._homeless.append(show(want.path))
        if spec.value is None:
            self._moved.append(show(want.path))
        return self._placing.default

    def _concrete(self, want: Want, sharding: Any) -> Any:
        """The sharding on real devices: an abstract mesh stands for the one that is set."""
        abstract = getattr(sharding, "mesh", None)
        if not isinstance(abstract, jax.sharding.AbstractMesh):
            return sharding
        mesh = self._placing.mesh
        if mesh is None or mesh.shape_tuple != abstract.shape_tuple:
            there = "none is set" if mesh is None else f"the one that is set is {mesh.shape_tuple}"
            raise PlacementError(
                f"{show(want.path)} is to be placed on an abstract mesh {abstract.shape_tuple}, "
                f"and {there}: load inside of jax.set_mesh(mesh) with one like it"
            )
        return jax.sharding.NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)

    def check_held(self, want: Want, dtype: np.dtype[Any]) -> None:
        """Refuses a dtype that JAX would silently replace.

        Raises:
            PlacementError: It would; the message says what can be done.
        """
        held = self._held.get(dtype)
        if held is None:
            with x64_as(self._placing.x64):
                held = self._held[dtype] = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
        if held != dtype:
            raise PlacementError(
                f"{show(want.path)} is {dtype}, which JAX would silently make {held}: set "
                f"jax_enable_x64, or ask for {held} (or np.ndarray) in the target"
            )

    def report(self) -> None:
        """Logs what was placed on the default device.

        Raises:
            PlacementError: Several processes have no place in common for some arrays; lists them.
        """
        if self._homeless:
            shown = ", ".join(self._homeless[:20]) + (", ..." if len(self._homeless) > 20 else "")
            raise PlacementError(
                f"{len(self._homeless)} arrays were sharded over devices that this job of "
                f"{jax.process_count()} processes does not have: {shown}. Pass a target with "
                "shardings, or fallback_sharding"
            )
        if self._moved:
            _log.info(
                "%d arrays, as %s, go to %s: their saved sharding is unknown or does not fit "
                "the devices here",
                len(self._moved),
                self._moved[0],
                self._placing.default,
            )


def key_data_shape(impl: str) -> plan.Shape:
    """The shape of one key's data."""
    data: Any = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl)))
    return tuple(data.shape)


def saved_shape(want: Want) -> plan.Shape:
    """The shape on storage: a PRNG key has its data behind it."""
    spec = want.spec
    assert spec is not None
    shape = spec.shape or ()
    return (*shape, *key_data_shape(str(spec.key_impl))) if spec.kind == "prng_key" else shape


def wanted_shape(want: Want) -> plan.Shape:
    """The shape to make: another than the saved one only where it is to be resized."""
    assert want.spec is not None
    if want.resize and want.shape is not None and want.spec.kind != "prng_key":
        return want.shape
    return saved_shape(want)


def stored_dtype(spec: LeafSpec) -> np.dtype[Any]:
    """The dtype of what the array store holds."""
    if spec.kind == "prng_key":
        return np.dtype(np.uint32)
    return dtype_from_name(str(spec.dtype))


def _has_a_part_here(sharding: jax.sharding.Sharding) -> bool:
    """An array of one device is each process's own: it goes to a device of this one."""
    return len(sharding.device_set) > 1 or bool(sharding.addressable_devices)


def _check_fits(want: Want, sharding: Any) -> None:
    shape = wanted_shape(want)
    try:
        sharding.shard_shape(shape)
    except (ValueError, IndexError, AttributeError) as error:
        raise PlacementError(
            f"{show(want.path)} of shape {list(shape)} cannot be placed as {sharding}: {error}"
        ) from error


def _layout(want: Want) -> Any:
    """The layout asked for, as far as it can be told without a device whether it fits."""
    layout = want.layout
    if layout is None:
        return None
    order = getattr(layout, "major_to_minor", None)
    shape = wanted_shape(want)
    if want.spec is not None and want.spec.kind == "prng_key":
        raise PlacementError(f"{show(want.path)}: PRNG keys have no layout of their own")
    if order is None or sorted(order) != list(range(len(shape))):
        raise PlacementError(
            f"{show(want.path)} of shape {list(shape)} cannot have the layout {layout}; accepted "
            "is a Layout with major_to_minor for each axis"
        )
    return layout


def _for_data(sharding: Any, spec: LeafSpec) -> Any:
    """The sharding of a PRNG key's data: the key's own, and the data's axes whole."""
    if isinstance(sharding, jax.Device):
        return jax.sharding.SingleDeviceSharding(sharding)
    rank = len(spec.shape or ())
    if spec.kind == "prng_key" and isinstance(sharding, jax.sharding.NamedSharding):
        parts = (*sharding.spec, *([None] * (rank - len(sharding.spec))))[:rank]
        spec_of_data = jax.sharding.PartitionSpec(*parts, None)  # type: ignore[no-untyped-call]
        return jax.sharding.NamedSharding(sharding.mesh, spec_of_data)
    return sharding
