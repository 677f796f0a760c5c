"""PyTrees: the handler that nearly every checkpoint uses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from holdfast_checkpointer.args import CheckpointArgs, PyTreeRestore, PyTreeSave
from holdfast_checkpointer.arrays.broadcast import Broadcast, together
from holdfast_checkpointer.arrays.options import ArraySaveOptions, check_file_size
from holdfast_checkpointer.arrays.read import ArrayReader, ArrayRequest
from holdfast_checkpointer.arrays.sharing import Share
from holdfast_checkpointer.arrays.snapshot import snapshot_all
from holdfast_checkpointer.arrays.survey import StoredShape
from holdfast_checkpointer.bursts import uncollected
from holdfast_checkpointer.errors import UnsupportedOptionError
from holdfast_checkpointer.handlers.base import CheckpointHandler, StagedItem
from holdfast_checkpointer.handlers.settings import handler_settings
from holdfast_checkpointer.handlers.staged_tree import StagedPyTree
from holdfast_checkpointer.items.describe import describe, inline_value
from holdfast_checkpointer.items.fetch import fetch
from holdfast_checkpointer.items.metadata import ArrayMetadata, NumpyMetadata, ScalarMetadata
from holdfast_checkpointer.items.placing import Placing
from holdfast_checkpointer.items.stored import StoredItem, open_item
from holdfast_checkpointer.items.storing import StorageRequest
from holdfast_checkpointer.items.tree_metadata import TreeMetadata, without_description
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context
from holdfast_checkpointer.trees.match import (
    Rules,
    Target,
    key_dtype,
    match,
    only_for,
    take_target,
    want_as_saved,
)
from holdfast_checkpointer.trees.paths import show
from holdfast_checkpointer.trees.rebuild import rebuild
from holdfast_checkpointer.trees.select import Selection
from holdfast_metadata import (
    TREE_FILE,
    LeafSpec,
    dtype_from_name,
    parse_json,
    require_json,
)
from holdfast_metadata.orbax import ITEM_METADATA_FILE
from holdfast_storage import DamagedCheckpointError, ReadArea

_PROCESS = "process_0"


@dataclass(frozen=True)
class _Request:
    args: PyTreeRestore
    target: Target | None
    placing: Placing
    selection: Selection | None = None


class PyTreeCheckpointHandler(CheckpointHandler):
    """Saves any PyTree of arrays, PRNG keys, numbers, strings and bytes, losslessly.

    Args:
        aggregate_filename: Only None: no leaves are gathered in a file of their own.
        save_concurrent_gb: About how many gigabytes are written at once; None for all.
        restore_concurrent_gb: About how many may be under way while reading.
        **further: `save_device_host_concurrent_gb` (a number of gigabytes, or "auto" for that of
            `memory_limit_options`), `memory_limit_options`, `multiprocessing_options`,
            `pytree_metadata_options`, and `use_ocdbt`, `use_zarr3`, `use_compression` and
            `enable_pinned_host_transfer` as in `options.ArraySaveOptions`. Of
            `type_handler_registry`, `handler_impl`, `array_metadata_validator` and
            `is_prioritized_key_fn` only None. They win over the context.

    Raises:
        TypeError: There is no such argument, or it is not of its class.
        ValueError: A value is impossible, or (`UnsupportedOptionError`) has no meaning here.
    """

    save_args: ClassVar[type[CheckpointArgs]] = PyTreeSave
    restore_args: ClassVar[type[CheckpointArgs]] = PyTreeRestore
    recorded_as = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"

    def __init__(
        self,
        aggregate_filename: str | None = None,
        *,
        save_concurrent_gb: float | None = None,
        restore_concurrent_gb: float | None = None,
        **further: Any,
    ) -> None:
        self._settings = handler_settings(
            aggregate_filename=aggregate_filename,
            save_concurrent_gb=save_concurrent_gb,
            restore_concurrent_gb=restore_concurrent_gb,
            **further,
        )
        self.taking_part = self._settings.multiprocessing

    def stage(self, args: Any, context: Context) -> StagedItem:
        """Describes the tree and takes a snapshot of its arrays.

        Raises:
            UnsupportedLeafError: Lists every leaf that cannot be saved.
            StorageOptionsError: Lists every leaf that cannot be stored as asked.
            ValueError: Another argument cannot be used.
        """
        self._settings.check_processes()
        if isinstance(args.item, TreeMetadata):
            raise ValueError("this is the description of a tree, which has no arrays to save")
        context = self._settings.applied(context)
        options = context.array_saving
        file_size = getattr(args, "ocdbt_target_data_file_size", None)
        if file_size is not None:
            check_file_size(file_size)
            options = dataclasses.replace(options, ocdbt_target_data_file_size=file_size)
        if args.custom_metadata is not None:
            require_json(args.custom_metadata, what="custom_metadata")
        share = _share(context, options)
        with uncollected():
            described = describe(args.item, StorageRequest(options, args.save_args))
            arrays = snapshot_all(
                described.arrays(),
                described.array_rules(),
                transfer_bytes=context.memory.transfer_concurrent_bytes,
                copy_host=context.memory.deepcopy_host_arrays,
                share=share,
            )
        handler = f"{type(self).__module__}.{type(self).__qualname__}"
        me = None if share is None else share.me
        return StagedPyTree(described, arrays, options, handler, args.custom_metadata, me)

    def prepare(self, args: Any) -> Any:
        """Takes the target apart, and captures where the caller's thread puts arrays.

        Raises:
            ValueError: An argument is not one of those accepted.
        """
        if args.cast not in ("safe", "unsafe"):
            raise ValueError(f"cast must be 'safe' or 'unsafe', got {args.cast!r}")
        _refuse_transforms(args)
        restore_args = getattr(args, "restore_args", None)
        if args.partial_restore or _transforms_nothing(args):
            restore_args = only_for(args.item, restore_args)
        with uncollected():
            target = None
            if args.item is not None or restore_args is not None:
                target = take_target(without_description(args.item), restore_args)
        unsafe = args.cast == "unsafe"
        placing = Placing.of_caller(fallback=args.fallback_sharding, unsafe=unsafe)
        return _Request(args, target, placing, Selection.of(args.select, args.rename))

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads the tree, or what the target wants of it; see `load`."""
        context = self._settings.applied(context)
        async with together(area.label, context) as broadcast:
            return await self.fetch_item(await open_item(area), request, context, broadcast)

    async def fetch_item(
        self,
        item: StoredItem,
        request: Any,
        context: Context,
        broadcast: Broadcast | None = None,
    ) -> Any:
        """`fetch` of an item that was opened."""
        root = item.tree.root
        if request.selection is not None:
            root = request.selection.apply(root)
        args = request.args
        with uncollected():
            if request.target is None:
                wants = want_as_saved(root)
            else:
                wants = match(request.target, root, _rules(args, item, context))
        options = context.array_loading
        leaves = await fetch(item, wants, request.placing, options, broadcast)
        if request.target is not None:
            return jax.tree_util.tree_unflatten(request.target.treedef, leaves)
        return rebuild(root, leaves, types=args.types, as_orbax=args.as_orbax)

    async def describe(self, area: ReadArea) -> Any:
        """The tree with `ArrayMetadata` for arrays and the values of scalars."""
        item = await open_item(area, digests=False)
        specs = [spec for _, spec in item.tree.leaves()]
        if item.ours:
            return rebuild(item.tree.root, [_metadata(spec) for spec in specs])
        names = [
            (str(spec.name), show(path)) for path, spec in item.tree.leaves() if _has_array(spec)
        ]
        reader = item.reader(Context().array_loading)
        told = iter(await reader.describe_all(names))
        leaves = [
            _orbax_metadata(spec, next(told)) if _has_array(spec) else inline_value(spec)
            for spec in specs
        ]
        return rebuild(item.tree.root, leaves)

    async def describe_item(self, area: ReadArea) -> Any:
        """A `TreeMetadata`: what `describe` says, and what was stored beside the item."""
        tree = await self.describe(area)
        document = parse_json(
            await area.get(ITEM_METADATA_FILE), source=f"{area.label}/{ITEM_METADATA_FILE}"
        )
        return TreeMetadata(tree, document.get("custom_metadata"))

    async def orbax_reason(self, area: ReadArea) -> str | None:
        """Why Orbax cannot read the item; None if it can."""
        if TREE_FILE not in await area.names():
            return None
        return (await open_item(area, digests=False)).tree.orbax_unreadable

    async def verify(self, area: ReadArea, context: Context) -> tuple[int, list[str]]:
        """Reads every array; returns how many, and what is damaged, in words."""
        item = await open_item(area)
        reader = ArrayReader(area.kv_target(), item.layout, context.array_loading, label=area.label)
        problems = []
        stored = [(path, spec) for path, spec in item.tree.leaves() if _has_array(spec)]
        for path, spec in stored:
            digests = item.digests.get(str(spec.name))
            if item.ours and digests is None:
                problems.append(f"{show(path)}: its digests are missing")
                continue
            request = ArrayRequest(
                name=str(spec.name),
                leaf=show(path),
                shape=digests.shape if digests else None,
                dtype=digests.dtype if digests else None,
                chunk_shape=digests.chunk_shape if digests else None,
                digests=digests.digests if digests else None,
            )
            try:
                await reader.read([request])
            except DamagedCheckpointError as error:
                problems.append(str(error))
        return len(stored), problems


def _share(context: Context, options: ArraySaveOptions) -> Share | None:
    job = Membership.of(context.multiprocessing)
    if job.alone:
        return None
    return Share(job.me, job.processes, options.chunk_bytes, options.slicing)


def _refuse_transforms(args: Any) -> None:
    for name in ("transforms", "legacy_transform_fn"):
        if getattr(args, name, None) is not None and not _transforms_nothing(args, name):
            raise UnsupportedOptionError(
                f"{name} is not applied here: load(rename=...) renames leaves, load(select=...) "
                "chooses them, and partial_restore=True takes a target with fewer leaves; other "
                "changes are made on the loaded tree. Accepted: None, and transforms={} with an "
                "item, for partial_restore=True"
            )


def _transforms_nothing(args: Any, name: str = "transforms") -> bool:
    """Whether it is Orbax's way to ask for a part: transforms of which there are none."""
    return (
        name == "transforms"
        and getattr(args, name, None) == {}
        and args.item is not None
        and args.transforms_default_to_original
    )


def _rules(args: Any, item: StoredItem, context: Context) -> Rules:
    return Rules(
        unsafe=args.cast == "unsafe",
        partial=args.partial_restore
        or _transforms_nothing(args)
        or context.pytree.loading.partial_load,
        resize=not args.strict or context.array.loading.enable_padding_and_truncation,
        layouts=args.support_layout,
        orbax=not item.ours,
    )


def _has_array(spec: LeafSpec) -> bool:
    return spec.name is not None and spec.kind != "str"


def _metadata(spec: LeafSpec) -> Any:
    match spec.kind:
        case "jax.Array":
            dtype = dtype_from_name(str(spec.dtype))
            return ArrayMetadata(spec.shape or (), dtype, spec.sharding, spec.chunk_shape)
        case "prng_key":
            dtype = key_dtype(str(spec.key_impl))
            return ArrayMetadata(spec.shape or (), dtype, spec.sharding, spec.chunk_shape)
        case "np.ndarray":
            return NumpyMetadata(
                spec.shape or (), dtype_from_name(str(spec.dtype)), spec.chunk_shape
            )
    return inline_value(spec)


def _orbax_metadata(spec: LeafSpec, found: StoredShape) -> Any:
    if spec.kind == "scalar":
        return ScalarMetadata(found.dtype)
    if spec.kind == "np.ndarray":
        return NumpyMetadata(found.shape, found.dtype, found.chunk_shape)
    if spec.kind == "prng_key":
        dtype = key_dtype(str(spec.key_impl))
        rank = len(found.shape) - 1
        return ArrayMetadata(found.shape[:rank], dtype, spec.sharding, found.chunk_shape)
    return ArrayMetadata(found.shape, found.dtype, spec.sharding, found.chunk_shape)


__all__ = ["PyTreeCheckpointHandler", "StoredItem"]
