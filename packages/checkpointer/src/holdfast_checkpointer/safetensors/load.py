"""Loading a PyTree from safetensors files, and describing them."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast_checkpointer.arrays.formats import ArrayFormat
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.read import ArraySource
from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.names import AUTO
from holdfast_checkpointer.errors import InvalidLayoutError, TensorNotFoundError
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.items.metadata import NumpyMetadata
from holdfast_checkpointer.items.stored import StoredItem
from holdfast_checkpointer.metadata import CheckpointMetadata
from holdfast_checkpointer.options import Context
from holdfast_checkpointer.safetensors.dtypes import DTYPES
from holdfast_checkpointer.safetensors.files import (
    SUFFIX,
    Found,
    TensorFiles,
    find_files,
    open_files,
)
from holdfast_checkpointer.safetensors.options import CheckpointLayout, SafetensorsOptions
from holdfast_checkpointer.safetensors.read import TensorReader
from holdfast_checkpointer.trees.match import Target
from holdfast_checkpointer.trees.paths import text
from holdfast_checkpointer.trees.structure import Shape
from holdfast_metadata import (
    DictNode,
    Key,
    LeafNode,
    LeafSpec,
    MetadataError,
    Node,
    NoneNode,
    TreeDocument,
    dtype_from_name,
    dtype_name,
)
from holdfast_storage import (
    CheckpointChangedError,
    DamagedCheckpointError,
    StorageBackend,
    keys,
)
from holdfast_storage.commit import open_plain

T = TypeVar("T")
_RESTARTS = 3


async def read_by_layout(
    backend: StorageBackend,
    final: str,
    context: Context,
    checkpoint: Callable[[StoredCheckpoint], Awaitable[T]],
    tensors: Callable[[Found], Awaitable[T]],
) -> T:
    """Runs one of two bodies on what is at a path, as `Context.checkpoint_layout` says.

    Raises:
        CheckpointNotFoundError: Neither is there; the message says what is.
        InvalidLayoutError: Safetensors files were asked for and none are there.
    """
    layout = context.checkpoint_layout
    if layout is CheckpointLayout.ORBAX:
        return await read_checkpoint(backend, final, checkpoint)
    if layout is CheckpointLayout.AUTO:

        async def foreign() -> tuple[T] | None:
            found = await find_files(backend, final)
            return None if found is None else (await tensors(found),)

        return await read_checkpoint(backend, final, checkpoint, foreign=foreign)
    found = await find_files(backend, final)
    if found is None:
        raise InvalidLayoutError(
            f"no safetensors files are here: give a folder of *{SUFFIX}, one such file, or an "
            "index of shards; another checkpoint_layout reads checkpoints",
            key=final,
            root=backend.root,
        )
    return await tensors(found)


async def load_tensors(found: Found, name: str | None, request: Any, context: Context) -> Any:
    """Loads what a request of `PyTreeCheckpointHandler.prepare` wants.

    Raises:
        KeyError: An item is named; files have none.
        TensorNotFoundError: The target names a tensor that is not there.
        TreeMismatchError: The target's shapes or dtypes do not fit.
        CheckpointChangedError: The files were replaced again and again meanwhile.
        DamagedCheckpointError: They are damaged; names file and tensor.
    """
    handler = PyTreeCheckpointHandler()
    # What is chosen or renamed is known by the names in the files.
    target: Target | None = request.target if request.selection is None else None

    async def body(item: StoredItem) -> Any:
        return await handler.fetch_item(item, request, context)

    return await with_tensors(found, name, context, body, target=target)


async def with_tensors(
    found: Found,
    name: str | None,
    context: Context,
    body: Callable[[StoredItem], Awaitable[T]],
    *,
    target: Target | None = None,
) -> T:
    """Runs `body` on safetensors files as an item: all tensors, or those a target names."""
    if name not in (AUTO, None, ""):
        raise KeyError(
            f"{found.label} has no item {name!r}: it is safetensors files, without items"
        )
    options = context.safetensors
    wanted = None if target is None else set(_names(target.shape, options.separator, ()))

    async def opened(files: TensorFiles) -> T:
        if target is None:
            root = _untargeted(files, options)
        else:
            root = _targeted(files, target.shape, options.separator)
        area, tree = open_plain(found.backend, found.final), TreeDocument(root)
        item = _Item(area, tree, ArrayFormat(), ours=False, files=files, options=options)
        return await body(item)

    return await _consistently(found, wanted, opened)


async def _consistently(
    found: Found, wanted: Collection[str] | None, body: Callable[[TensorFiles], Awaitable[T]]
) -> T:
    """Runs `body` on files none of which is replaced from the first header to the last byte."""
    current: Found | None = found
    for _ in range(_RESTARTS):
        if current is None:
            break
        try:
            files = await open_files(current, wanted)
            result = await body(files)
        except DamagedCheckpointError:
            again = await find_files(found.backend, found.final)
            if again is None or again.versions == current.versions:
                raise
            current = again
        else:
            if await files.unchanged():
                return result
            current = await find_files(found.backend, found.final)
    raise CheckpointChangedError(
        f"the files were replaced {_RESTARTS} times while they were read",
        key=found.final,
        root=found.backend.root,
    )


@dataclass(frozen=True, kw_only=True)
class _Item(StoredItem):
    """Safetensors files as an item."""

    files: TensorFiles
    options: SafetensorsOptions

    def reader(self, options: ArrayLoadOptions) -> ArraySource:
        return TensorReader(self.files, options, self.options)


def _leaf(files: TensorFiles, name: str) -> LeafNode:
    _, tensor = files.tensors[name]
    dtype = dtype_name(DTYPES[tensor.dtype])
    return LeafNode(LeafSpec("np.ndarray", name, shape=tensor.shape, dtype=dtype))


def _untargeted(files: TensorFiles, options: SafetensorsOptions) -> Node:
    """Every tensor: by its whole name, or nested by the parts of it."""
    if not options.nested:
        return _dict({name: _leaf(files, name) for name in files.tensors})
    root: dict[str, Any] = {}
    for name in sorted(files.tensors):
        *above, last = name.split(options.separator)
        node: Any = root
        for part in above:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise MetadataError(
                f"the tensor {name!r} cannot be nested: another's name is a part of its own; load "
                "with nested=False"
            )
        node[last] = _leaf(files, name)
    return _nest(root)


def _nest(tree: Mapping[str, Any]) -> Node:
    return _dict({k: _nest(v) if isinstance(v, dict) else v for k, v in tree.items()})


def _dict(children: Mapping[str, Node]) -> DictNode:
    names = sorted(children)
    return DictNode(None, tuple(Key("str", n) for n in names), tuple(children[n] for n in names))


def _names(shape: Shape, separator: str, above: tuple[str, ...]) -> list[str]:
    """The names of the tensors that the leaves and Nones of a target mean."""
    if shape.kind in ("leaf", "none"):
        return [separator.join(above)]
    return [
        name
        for step, child in zip(shape.steps, shape.children, strict=True)
        for name in _names(child, separator, (*above, text(step)))
    ]


def _targeted(files: TensorFiles, shape: Shape, separator: str) -> Node:
    """The tensors that a target names, in its own shape; others are not read.

    Flat or nested is the target's choice: what is on the way to a leaf is its tensor's name.
    """
    missing: list[str] = []

    def visit(shape: Shape, above: tuple[str, ...]) -> Node:
        if shape.kind not in ("leaf", "none"):
            steps = [text(step) for step in shape.steps]
            children = [
                visit(child, (*above, step))
                for step, child in zip(steps, shape.children, strict=True)
            ]
            return DictNode(None, tuple(Key("str", step) for step in steps), tuple(children))
        name = separator.join(above)
        if name in files.tensors:
            return _leaf(files, name)
        if shape.kind == "leaf":
            missing.append(name)
        return NoneNode()  # a None where nothing is stays one, as frameworks have for no bias

    root = visit(shape, ())
    if missing:
        raise TensorNotFoundError(_not_found(missing, files))
    return root


def _not_found(missing: list[str], files: TensorFiles) -> str:
    names = list(files.names)
    lines = []
    for name in missing[:20]:
        near = difflib.get_close_matches(name, names, 3) if len(names) <= 20_000 else []
        lines.append(f"  {name!r}" + (f"; near it: {', '.join(map(repr, near))}" if near else ""))
    if len(missing) > 20:
        lines.append(f"  ... and {len(missing) - 20} more")
    shown = ", ".join(map(repr, sorted(names)[:5])) + (", ..." if len(names) > 5 else "")
    return (
        f"{files.found.label} has {len(names)} tensors ({shown}), and not these of the target:\n"
        + "\n".join(lines)
    )


async def holds_tensors(backend: StorageBackend, final: str) -> bool:
    """Whether whole safetensors files are there: sound headers, and as long as these say."""
    try:
        found = await find_files(backend, final)
        if found is None:
            return False
        await open_files(found)
    except (DamagedCheckpointError, InvalidLayoutError, MetadataError):
        return False
    return True


async def describe_tensors(found: Found, context: Context) -> CheckpointMetadata:
    """Describes safetensors files by their headers: names, shapes, dtypes and metadata."""

    async def body(files: TensorFiles) -> CheckpointMetadata:
        root = _untargeted(files, context.safetensors)
        tree = _described(root)
        newest = max((file.info.modified for file in files.files), default=None)
        return CheckpointMetadata(
            path=found.label,
            metadata=tree,
            items={"": tree},
            custom_metadata=_custom_metadata(files),
            commit_timestamp_nsecs=None if newest is None else round(newest * 1e9),
            orbax_readable={"": None},
            data_url=found.label,
        )

    return await _consistently(found, None, body)


def _described(node: Node) -> Any:
    if isinstance(node, DictNode):
        return {
            str(key.python()): _described(child)
            for key, child in zip(node.keys, node.children, strict=True)
        }
    assert isinstance(node, LeafNode)
    spec = node.spec
    return NumpyMetadata(spec.shape or (), dtype_from_name(str(spec.dtype)))


def _custom_metadata(files: TensorFiles) -> dict[str, Any]:
    """`__metadata__` of all files; where they differ in a key, its texts by file."""
    found: dict[str, dict[str, str]] = {}
    for file in files.files:
        for key, value in file.header.metadata.items():
            found.setdefault(key, {})[keys.leaf(file.info.key)] = value
    return {
        key: next(iter(values.values())) if len(set(values.values())) == 1 else values
        for key, values in found.items()
    }
