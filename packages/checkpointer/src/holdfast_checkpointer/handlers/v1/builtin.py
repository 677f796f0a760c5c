"""Holdfast's own handlers of named items. They run on the engine, so any storage will do."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Awaitable
from typing import Any, ClassVar

from holdfast_checkpointer.args import (
    CheckpointArgs,
    JsonRestore,
    JsonSave,
    ProtoRestore,
    ProtoSave,
    PyTreeRestore,
    PyTreeSave,
)
from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.errors import UnsupportedLeafError
from holdfast_checkpointer.handlers.base import CheckpointHandler, Item, StagedItem
from holdfast_checkpointer.handlers.direct_together import save_together
from holdfast_checkpointer.handlers.foreign.inner import InnerItems
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.proto import ProtoCheckpointHandler
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.standard import StandardCheckpointHandler
from holdfast_checkpointer.handlers.v1.protocols import PathAwaitingCreation, StatefulCheckpointable
from holdfast_checkpointer.handlers.v1.registry import CheckpointableHandlerRegistry
from holdfast_checkpointer.items.describe import describe
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.options import Context, current
from holdfast_metadata import MetadataError, canonical_json, require_json
from holdfast_storage import StorageBackend
from holdfast_storage.commit import open_plain
from holdfast_storage.direct import DirectArea

STATEFUL_TYPESTR = (
    "orbax.checkpoint.experimental.v1._src.handlers.stateful_checkpointable_handler."
    "StatefulCheckpointableHandler"
)


class EngineHandler:
    """A handler whose work the engine does, straight into the attempt.

    `save`, `load` and `metadata` are for handlers of users that leave a part of theirs to one
    of these, in a folder they name.
    """

    def __init__(self, context: Context | None = None) -> None:
        self._context = context

    def engine(self) -> CheckpointHandler:
        """What does the work."""
        raise NotImplementedError

    def saving(self, checkpointable: Any) -> CheckpointArgs:
        """The engine's arguments to save an item."""
        raise NotImplementedError

    def restoring(self, abstract_checkpointable: Any, **fields: Any) -> CheckpointArgs:
        """The engine's arguments to load one."""
        raise NotImplementedError

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it can be saved as this."""
        raise NotImplementedError

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it says how to load this; None leaves it to what the checkpoint records."""
        raise NotImplementedError

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        """Takes a snapshot, and returns what writes it into a folder.

        Raises:
            ValueError: It cannot be saved; nothing was written.
        """
        around = InnerItems.around(getattr(directory, "path", directory))
        with (
            contextlib.nullcontext() if around else call_of(lambda: current(self._context)) as call
        ):
            context = current(self._context)
            staged = self.engine().stage(self.saving(checkpointable), context)

        async def write() -> None:
            backend, prefix = context.locate(await directory.await_creation())
            work = self._write(staged, around, backend, prefix, context, call)
            await AsyncResponse(work, what=f"the save to {directory}")

        return write()

    async def _write(
        self,
        staged: StagedItem,
        around: tuple[InnerItems, str] | None,
        backend: StorageBackend,
        prefix: str,
        context: Context,
        call: Call | None,
    ) -> None:
        if around is not None:
            await around[0].write(around[1], staged)
        elif call is not None:
            items = {"": Item(staged, self.engine().typestr())}
            await save_together(*(backend, prefix, items), context=context, call=call)
        else:
            area = DirectArea(backend, prefix)
            await staged.finish(area, [await staged.write(area)])

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Returns what reads a folder that `save` wrote."""
        context = current(self._context)
        backend, prefix = context.locate(directory)
        engine = self.engine()
        request = engine.prepare(self.restoring(abstract_checkpointable))

        async def read() -> Any:
            work = engine.fetch(open_plain(backend, prefix), request, context)
            return await AsyncResponse(work, what=f"the load from {directory}")

        return read()

    async def metadata(self, directory: Any) -> Any:
        """Says what a folder holds that `save` wrote, without reading values."""
        backend, prefix = current(self._context).locate(directory)
        work = self.engine().describe(open_plain(backend, prefix))
        return await AsyncResponse(work, what=f"the metadata of {directory}")


class PyTreeHandler(EngineHandler):
    """Saves any PyTree, as `PyTreeCheckpointHandler` does.

    Args:
        context: Options for `save`, `load` and `metadata` where they are called directly; None
            takes those of the context around the call.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context)

    def engine(self) -> CheckpointHandler:
        """See `EngineHandler`."""
        return PyTreeCheckpointHandler()

    def saving(self, checkpointable: Any) -> CheckpointArgs:
        """See `EngineHandler`."""
        return PyTreeSave(checkpointable)

    def restoring(self, abstract_checkpointable: Any, **fields: Any) -> CheckpointArgs:
        """See `EngineHandler`."""
        return PyTreeRestore(abstract_checkpointable, **fields)

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether every leaf can be saved."""
        if is_stateful(checkpointable):
            return False
        try:
            describe(checkpointable)
        except UnsupportedLeafError:
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it can be a target: neither a message's class nor an object that loads itself."""
        return not (
            is_message_class(abstract_checkpointable) or is_stateful(abstract_checkpointable)
        )


class JsonHandler(EngineHandler):
    """Saves a value that JSON can express as one file.

    A dict of numbers and text is a PyTree, too, and is saved as one unless this handler was
    added for the item's name.

    Args:
        filename: The file's name; None writes `metadata` as Orbax's v0 handlers do, and reads
            `data.json` of its v1 handlers as well.
    """

    def __init__(self, filename: str | None = None) -> None:
        super().__init__()
        self._filename = filename

    def engine(self) -> CheckpointHandler:
        """See `EngineHandler`."""
        return JsonCheckpointHandler(self._filename)

    def saving(self, checkpointable: Any) -> CheckpointArgs:
        """See `EngineHandler`."""
        return JsonSave(checkpointable)

    def restoring(self, abstract_checkpointable: Any, **fields: Any) -> CheckpointArgs:
        """See `EngineHandler`."""
        return JsonRestore(abstract_checkpointable, **fields)

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it comes back from JSON as what it is."""
        try:
            require_json(checkpointable, what="the item")
            canonical_json(checkpointable)
        except MetadataError:
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Nothing about a JSON value tells how to load one: what was recorded decides."""
        return None


class ProtoHandler(EngineHandler):
    """Saves a protocol buffer message as text.

    Args:
        filename: The file's name.
    """

    def __init__(self, filename: str = "proto.pbtxt") -> None:
        super().__init__()
        self._filename = filename

    def engine(self) -> CheckpointHandler:
        """See `EngineHandler`."""
        return ProtoCheckpointHandler(self._filename)

    def saving(self, checkpointable: Any) -> CheckpointArgs:
        """See `EngineHandler`."""
        return ProtoSave(checkpointable)

    def restoring(self, abstract_checkpointable: Any, **fields: Any) -> CheckpointArgs:
        """See `EngineHandler`; the message's class is needed."""
        return ProtoRestore(abstract_checkpointable, **fields)

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it is a message."""
        return not isinstance(checkpointable, type) and _is_message(type(checkpointable))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it is a message's class."""
        return is_message_class(abstract_checkpointable)


class StatefulHandler:
    """Saves objects that save themselves; see `StatefulCheckpointable`."""

    recorded_as: ClassVar[str] = STATEFUL_TYPESTR

    async def save(self, directory: Any, checkpointable: StatefulCheckpointable) -> Any:
        """Lets the object save itself."""
        return await checkpointable.save(directory)

    async def load(
        self, directory: Any, abstract_checkpointable: StatefulCheckpointable | None = None
    ) -> Any:
        """Brings the object into the saved state, and returns it.

        Raises:
            ValueError: There is no object to load into.
        """
        if abstract_checkpointable is None:
            raise ValueError(
                "this item was saved by an object that saves itself: pass the object that is to "
                "be brought into that state"
            )
        reads = await abstract_checkpointable.load(directory)

        async def load() -> StatefulCheckpointable:
            await reads
            return abstract_checkpointable

        return load()

    async def metadata(self, directory: Any) -> Any:
        """Only the object itself knows what its files hold.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("objects that save themselves do not describe what they saved")

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether it saves itself."""
        return is_stateful(checkpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it loads itself."""
        return is_stateful(abstract_checkpointable)


def is_stateful(value: Any) -> bool:
    """Whether an object saves itself: its `save` and `load` are coroutine functions."""
    return not isinstance(value, type) and all(
        inspect.iscoroutinefunction(getattr(value, method, None)) for method in ("save", "load")
    )


def is_message_class(value: Any) -> bool:
    """Whether this is a class of protocol buffer messages."""
    return isinstance(value, type) and _is_message(value)


def _is_message(kind: type) -> bool:
    """Whoever has a message has imported its module."""
    module = sys.modules.get("google.protobuf.message")
    return module is not None and issubclass(kind, module.Message)


def add_builtin(registry: CheckpointableHandlerRegistry) -> None:
    """Adds holdfast's own handlers, in Orbax's order: a PyTree goes before JSON."""
    registry.add(ProtoHandler, secondary_typestrs=[ProtoCheckpointHandler.recorded_as])
    registry.add(JsonHandler, secondary_typestrs=[JsonCheckpointHandler.recorded_as])
    registry.add(StatefulHandler, secondary_typestrs=[STATEFUL_TYPESTR])
    trees = (PyTreeCheckpointHandler, StandardCheckpointHandler)
    registry.add(PyTreeHandler, secondary_typestrs=[kind.recorded_as for kind in trees])
    registry.add(PyTreeHandler, checkpointable_name="state")
