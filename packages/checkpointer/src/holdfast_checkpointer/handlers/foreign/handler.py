"""A user's handler as one of the engine's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast_checkpointer.args import CheckpointArgs
from holdfast_checkpointer.handlers.arguments import (
    build_arguments,
    is_arguments,
    registered_arguments,
    wrong_arguments,
)
from holdfast_checkpointer.handlers.base import (
    CheckpointHandler,
    StagedItem,
    overrides,
)
from holdfast_checkpointer.handlers.foreign.calls import (
    Worker,
    as_path,
    futures_in,
    give_up,
    run_coroutine,
    wait_for,
    where_called,
)
from holdfast_checkpointer.handlers.foreign.folders import ItemFolder, readable_folder
from holdfast_checkpointer.handlers.foreign.item import UsersItem
from holdfast_checkpointer.handlers.foreign.recognition import (
    check_handler_class,
    is_foreign,
    typestr_of,
)
from holdfast_checkpointer.options import Context, FileOptions, current
from holdfast_storage import ReadArea


def driven(handler: Any, *, asynchronous: bool = False) -> CheckpointHandler:
    """The handler that the engine drives: itself, or one that calls its methods.

    Args:
        handler: One of the engine's, or one written against Orbax's protocol.
        asynchronous: Prefer `async_save` where there are both.

    Raises:
        TypeError: It is neither; the message says what it lacks.
    """
    if isinstance(handler, ForeignHandler):
        return handler
    check_handler_class(type(handler))
    if is_foreign(type(handler)):
        return ForeignHandler(handler, asynchronous=asynchronous)
    assert isinstance(handler, CheckpointHandler)
    return handler


@dataclass(frozen=True)
class CallArguments(CheckpointArgs):
    """What a handler without registered arguments is called with."""

    positional: Sequence[Any] = ()
    keyword: Mapping[str, Any] = field(default_factory=dict)


class ForeignHandler(CheckpointHandler):
    """Drives a handler that was written against Orbax's protocol.

    `save` and the first part of `async_save` run in the caller's thread, for what they read
    may change as soon as the caller goes on; so does `restore`. What `async_save` returned is
    waited for in the background, and `finalize` follows before the commit.

    Attributes:
        handler: The user's.
    """

    def __init__(self, handler: Any, *, asynchronous: bool) -> None:
        self.handler = handler
        self._asynchronous = asynchronous

    def recorded(self) -> str:
        """See `CheckpointHandler.recorded`."""
        return typestr_of(type(self.handler))

    def arguments(
        self, positional: Sequence[Any], keyword: Mapping[str, Any], *, save: bool
    ) -> CheckpointArgs:
        """See `CheckpointHandler.arguments`; without registered ones, everything is forwarded."""
        expected = registered_arguments(self.handler)
        if expected is None:
            return CallArguments(tuple(positional), dict(keyword))
        made: CheckpointArgs = build_arguments(expected[0 if save else 1], positional, keyword)
        return made

    def accepts(self, args: Any, *, save: bool) -> str | None:
        """See `CheckpointHandler.accepts`."""
        registered = registered_arguments(self.handler)
        if registered is None:
            return None
        expected = registered[0 if save else 1]
        return None if isinstance(args, expected) else wrong_arguments(expected, args)

    def stage(self, args: Any, context: Context) -> StagedItem:
        """Nothing is read yet: the handler does so when there is a folder."""
        return _StagedCall(self._saving(_call_of(args)), self.handler, context)

    def _saving(self, call: CallArguments) -> Callable[[Any], Any]:
        """The method that saves, with its arguments; what it returns is to be waited for."""
        kind = type(self.handler)
        both = [name for name in ("save", "async_save") if _has_own(kind, name)]
        if not both:
            both = ["save"]  # the engine's own, of a class that overrides another method
        name = both[-1] if self._asynchronous else both[0]
        method = getattr(self.handler, name)

        def save(folder: Any) -> Any:
            if name == "save":
                return method(folder, *call.positional, **call.keyword)
            return run_coroutine(lambda: method(folder, *call.positional, **call.keyword))

        return save

    def prepare(self, args: Any) -> Any:
        """See `CheckpointHandler.prepare`."""
        return _call_of(args)

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Calls the handler's `restore`, on files that are compared with what was saved."""

        def restore(folder: str) -> Any:
            return self.handler.restore(as_path(folder), *request.positional, **request.keyword)

        return await self._reading(area, context.file, restore)

    async def describe(self, area: ReadArea) -> Any:
        """Calls the handler's `metadata`; None if it has none to tell."""
        method = getattr(self.handler, "metadata", None)
        if method is None:
            return None
        try:
            return await self._reading(area, current().file, lambda folder: method(as_path(folder)))
        except NotImplementedError:
            return None

    async def _reading(
        self, area: ReadArea, options: FileOptions, call: Callable[[str], Any]
    ) -> Any:
        worker = Worker()
        try:
            async with readable_folder(area, options, worker) as folder:
                return await where_called(functools.partial(call, folder), worker)
        finally:
            worker.end()

    def close(self) -> None:
        """Closes the user's handler."""
        close = getattr(self.handler, "close", None)
        if callable(close):
            close()


class _StagedCall(UsersItem):
    """A save that a user's handler will do."""

    def __init__(self, save: Callable[[Any], Any], handler: Any, context: Context) -> None:
        super().__init__(context)
        self._method = save
        self._handler = handler
        self._futures: list[Any] = []

    async def _save(self, worker: Worker, folder: ItemFolder) -> None:
        def save() -> None:
            with Context(self._context):
                self._futures = futures_in(self._method(as_path(folder.path)))

        await where_called(save, worker)
        await worker.run(functools.partial(wait_for, self._futures))
        self._futures = []
        await folder.check(worker, finalized=False)

    async def _complete(self, worker: Worker, folder: ItemFolder) -> None:
        method = getattr(self._handler, "finalize", None)
        if not callable(method):
            return

        def finalize() -> None:
            with Context(self._context):
                method(as_path(folder.path))

        await worker.run(finalize)

    async def _stop(self, worker: Worker) -> None:
        await worker.run(functools.partial(give_up, self._futures))


def _call_of(args: Any) -> CallArguments:
    """How a handler is called with what it was given."""
    if isinstance(args, CallArguments):
        return args
    if is_arguments(args):
        return CallArguments((), {"args": args})
    return CallArguments((args,))


def _has_own(kind: type, method: str) -> bool:
    if issubclass(kind, CheckpointHandler):
        return overrides(kind, method)
    return callable(getattr(kind, method, None))


__all__ = ["CallArguments", "ForeignHandler", "driven"]
