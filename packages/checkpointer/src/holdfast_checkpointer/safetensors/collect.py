"""What an export writes: the tensors of a tree or of a stored item, named and checked."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.plan import Region
from holdfast_checkpointer.arrays.read import ArrayRequest
from holdfast_checkpointer.errors import UnsupportedLeafError
from holdfast_checkpointer.items.stored import StoredItem
from holdfast_checkpointer.safetensors.dtypes import DTYPES, bytes_of, is_packed, name_of
from holdfast_checkpointer.safetensors.header import METADATA
from holdfast_checkpointer.trees.leaves import CannotBeSaved, Leaf, classify
from holdfast_checkpointer.trees.paths import show, text
from holdfast_checkpointer.trees.structure import Path, take_apart
from holdfast_metadata import LeafSpec, Node, decode_scalar, dtype_from_name, dtype_name
from holdfast_metadata.tree import iterate_leaves

_ARRAYS = ("jax.Array", "np.ndarray", "np.generic")
_BATCH = 64 << 20
_SCATTERED = (
    "no process has it whole. Save the tree, and export the checkpoint, which is read piece by "
    "piece: hf.save(path, tree), then hf.export_safetensors(path, ...)"
)


@dataclass(frozen=True)
class Tensor:
    """One tensor to write.

    Attributes:
        name: Its name.
        dtype: Its dtype, as the format calls it.
        shape: Its shape.
        spec: The leaf it is.
        value: Its values, if they are in memory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    spec: LeafSpec
    value: Any = None

    @property
    def size(self) -> int:
        """Its bytes in a file."""
        return bytes_of(self.dtype, self.shape) or 0


@dataclass(frozen=True)
class Collected:
    """What to write.

    Attributes:
        tensors: In the tree's order.
        texts: For `__metadata__`.
        item: Where the values are that are not in memory.
        loading: How they are read.
    """

    tensors: tuple[Tensor, ...]
    texts: Mapping[str, str]
    item: StoredItem | None = None
    loading: ArrayLoadOptions = field(default_factory=ArrayLoadOptions)


@dataclass(frozen=True)
class Naming:
    """How leaves become tensors or texts.

    Attributes:
        separator: Joins the keys on the way to a leaf.
        numbers_as_text: Whether numbers and texts go into the metadata; else they are refused.
        texts: The caller's metadata.
    """

    separator: str
    numbers_as_text: bool
    texts: Mapping[str, str]


def collect_tree(tree: Any, naming: Naming) -> Collected:
    """Finds the tensors of a tree in memory. No copies.

    Raises:
        UnsupportedLeafError: Lists every leaf that cannot be written, with its path.
    """
    _, found = take_apart(tree)
    leaves: list[tuple[Path, LeafSpec, Any]] = []
    problems = []
    for path, value in found:
        try:
            leaf: Leaf = classify(value)
        except CannotBeSaved as error:
            problems.append(f"{show(path)}: {error}")
        else:
            if isinstance(value, jax.Array) and not _whole(value):
                problems.append(f"{show(path)}: {_SCATTERED}")
                continue
            spec = leaf.spec
            made = leaf.array
            if spec.kind not in _ARRAYS and spec.value is not None:
                made = decode_scalar(spec.kind, spec.value)
            leaves.append((path, spec, made))
    if problems:
        raise UnsupportedLeafError(problems)
    return _collect(leaves, naming)


def _whole(array: jax.Array) -> bool:
    return array.is_fully_addressable or array.is_fully_replicated


async def collect_item(
    item: StoredItem, root: Node, naming: Naming, loading: ArrayLoadOptions
) -> Collected:
    """Finds the tensors of a stored item. Reads what it takes to know shapes, and numbers.

    Raises:
        UnsupportedLeafError: Lists every leaf that cannot be written, with its path.
    """
    specs = list(iterate_leaves(root))
    reader = item.reader(loading)
    unknown = [(str(spec.name), show(path)) for path, spec in specs if spec.name and _lacks(spec)]
    told = dict(zip([n for n, _ in unknown], await reader.describe_all(unknown), strict=True))
    leaves: list[tuple[Path, LeafSpec, Any]] = []
    for path, spec in specs:
        value = None
        if spec.name in told and _lacks(spec):
            shape = told[spec.name]
            spec = LeafSpec(spec.kind, spec.name, shape=shape.shape, dtype=dtype_name(shape.dtype))
        if spec.kind == "scalar":  # a number of Orbax's: only its array knows it
            request = ArrayRequest(str(spec.name), show(path), spec.shape, spec.dtype)
            value = (await reader.read([request]))[0][0]
        elif spec.value is not None:
            value = decode_scalar(spec.kind, spec.value)
        leaves.append((path, spec, value))
    found = _collect(leaves, naming)
    return Collected(found.tensors, found.texts, item, loading)


def _lacks(spec: LeafSpec) -> bool:
    return spec.kind in ("jax.Array", "np.ndarray", "scalar") and spec.shape is None


def _collect(leaves: Sequence[tuple[Path, LeafSpec, Any]], naming: Naming) -> Collected:
    tensors, problems = [], []
    texts = dict(naming.texts)
    paths: dict[str, Path] = {}
    for path, spec, value in leaves:
        name = naming.separator.join(text(step) for step in path)
        problem = _name_problem(name, path, paths)
        if problem is None and spec.kind in _ARRAYS:
            made = _tensor(name, spec, value)
            problem = made if isinstance(made, str) else None
            tensors += [made] if isinstance(made, Tensor) else []
        elif problem is None:
            problem = _add_text(name, spec, value, naming, texts)
        if problem is not None:
            problems.append(f"{show(path)}: {problem}")
        paths.setdefault(name, path)
    if problems:
        raise UnsupportedLeafError(problems, accepted=_ACCEPTED)
    return Collected(tuple(tensors), texts)


_ACCEPTED = (
    "a safetensors file holds arrays of bool, of integers and floats up to 64 bits, complex64, and "
    "the float8, float6 and float4 types that the format names"
)


def _name_problem(name: str, path: Path, paths: Mapping[str, Path]) -> str | None:
    if not name or name == METADATA:
        return f"its tensor would be called {name!r}; put it into a dict under another key"
    if name in paths:
        return f"its tensor would be called {name!r}, as that of {show(paths[name])}"
    return None if _is_unicode(name) else "its name is not Unicode: it has lone surrogates"


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(name: str, spec: LeafSpec, value: Any) -> Tensor | str:
    """The tensor that an array is, or in words why it can be none."""
    dtype = dtype_from_name(str(spec.dtype))
    word = name_of(dtype)
    if word is None:
        return f"the format has no dtype {dtype}; cast it before"
    shape = spec.shape or ()
    if bytes_of(word, shape) is None:
        return f"{dtype}{list(shape)} does not fill its last byte, which the format demands"
    return Tensor(name, word, shape, spec, value)


def _add_text(
    name: str, spec: LeafSpec, value: Any, naming: Naming, texts: dict[str, str]
) -> str | None:
    """Puts a number or text into the metadata, or says why not."""
    if spec.kind not in ("int", "float", "bool", "str", "scalar"):
        what = "PRNG keys" if spec.kind == "prng_key" else f"a {spec.kind}"
        return f"{what} can be no tensor; leave it out with select="
    if not naming.numbers_as_text:
        return (
            f"{spec.kind} is no tensor; leave it out with select=, make it an array, or write "
            "it into the metadata with non_tensors='metadata'"
        )
    if name in texts:
        return f"the metadata has a {name!r} already"
    if isinstance(value, str) and not _is_unicode(value):
        return "text with lone surrogates is not Unicode"
    if spec.kind == "scalar":
        value = np.asarray(value).item()
    texts[name] = value if isinstance(value, str) else json.dumps(value)
    return None


async def values(collected: Collected, tensors: Sequence[Tensor]) -> AsyncIterator[Any]:
    """The values of tensors in order, large stored ones piece by piece along the first axis."""
    item = collected.item
    reader = None if item is None else item.reader(collected.loading)
    for stored, run in itertools.groupby(tensors, key=lambda tensor: tensor.value is None):
        if not stored or item is None or reader is None:
            for tensor in run:
                yield await asyncio.to_thread(np.asarray, tensor.value)
            continue
        for batch in _batches(item, list(run)):
            for parts in await reader.read(batch):
                for part in parts:
                    yield part


def _batches(item: StoredItem, tensors: Sequence[Tensor]) -> Iterator[list[ArrayRequest]]:
    """Requests whose bytes together are bounded, wherever a chunk of one array is smaller."""
    batch: list[ArrayRequest] = []
    held = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize
        if held and held + size > _BATCH:
            yield batch
            batch, held = [], 0
        if size <= _BATCH or is_packed(tensor.dtype):  # a piece may end inside a byte
            batch.append(_request(item, tensor, None))
            held += size
            continue
        for region in _blocks(item, tensor, size):
            yield [_request(item, tensor, region)]
    if batch:
        yield batch


def _blocks(item: StoredItem, tensor: Tensor, size: int) -> Iterator[Region]:
    """A large array in runs of whole chunks along its first axis."""
    digests = item.digests.get(str(tensor.spec.name))
    step = digests.chunk_shape[0] if digests else 1
    rows = max(1, _BATCH // (size // tensor.shape[0]) // step) * step
    behind = tuple(slice(0, n) for n in tensor.shape[1:])
    for start in range(0, tensor.shape[0], rows):
        yield (slice(start, min(start + rows, tensor.shape[0])), *behind)


def _request(item: StoredItem, tensor: Tensor, region: Region | None) -> ArrayRequest:
    spec = tensor.spec
    digests = item.digests.get(str(spec.name))
    return ArrayRequest(
        name=str(spec.name),
        leaf=tensor.name,
        shape=tensor.shape,
        dtype=spec.dtype,
        storage_dtype=spec.storage_dtype,
        chunk_shape=digests.chunk_shape if digests else None,
        digests=digests.digests if digests else None,
        regions=None if region is None else [region],
        writable=False,
    )
