"""Who is measured: the same tree to the same disk, done when the result can be used."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way to save and load a tree.

    Attributes:
        name: In the table.
        save: Durable when it returns, as far as the contender offers that.
        load: Returns when every array is ready.
        save_async: Returns (a handle to wait on) when training could go on; None if there
            is no such thing.
    """

    name: str
    save: Callable[[Path, Any], None]
    load: Callable[[Path, Any], Any]
    save_async: Callable[[Path, Any], Callable[[], Any]] | None = None


def holdfast() -> Contender:
    """holdfast as it comes."""
    import jax

    import holdfast as hf

    def save_async(path: Path, tree: Any) -> Callable[[], Any]:
        return hf.save_async(path, tree).result

    return Contender(
        "holdfast",
        hf.save,
        lambda path, tree: jax.block_until_ready(hf.load(path, _abstract(tree))),
        save_async,
    )


def orbax(name: str, *, compression: bool) -> Contender:
    """Orbax's v1 functions."""
    import jax
    from orbax.checkpoint import v1 as ocp

    def context() -> Any:
        if compression:
            return nullcontext()
        found = ocp.Context()
        found.array.saving.use_compression = False
        return found

    def save(path: Path, tree: Any) -> None:
        with context():
            ocp.save(path, tree)

    def save_async(path: Path, tree: Any) -> Callable[[], Any]:
        with context():
            return ocp.save_async(path, tree).result

    def load(path: Path, tree: Any) -> Any:
        return jax.block_until_ready(ocp.load(path, _abstract(tree)))

    return Contender(name, save, load, save_async)


def raw_disk() -> Contender:
    """One file: write and fsync; read into fresh memory."""
    import jax
    import numpy as np

    def save(path: Path, tree: Any) -> None:
        path.mkdir()
        with (path / "raw").open("wb", buffering=0) as file:
            for leaf in jax.tree.leaves(tree):
                file.write(memoryview(np.asarray(leaf).reshape(-1).view(np.uint8)))
            os.fsync(file.fileno())

    def load(path: Path, tree: Any) -> Any:
        found = []
        with (path / "raw").open("rb", buffering=0) as file:
            for leaf in jax.tree.leaves(tree):
                buffer = np.empty(leaf.nbytes, np.uint8)
                file.readinto(buffer)
                found.append(buffer)
        return found

    return Contender("raw disk", save, load)


def contenders() -> list[Contender]:
    """Everybody, in the table's order."""
    return [
        holdfast(),
        orbax("orbax", compression=True),
        orbax("orbax, no compression", compression=False),
        raw_disk(),
    ]


def _abstract(tree: Any) -> Any:
    import jax

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def remove(path: Path) -> None:
    """Clears a place for the next repetition."""
    shutil.rmtree(path, ignore_errors=True)
    os.sync()


def forget_cached(path: Path) -> None:
    """Asks the kernel to drop the files' pages, so that the next load is cold."""
    advise = ctypes.CDLL(None).posix_fadvise
    advise.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_int]
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            advise(descriptor, 0, 0, 4)  # POSIX_FADV_DONTNEED
            os.close(descriptor)
