"""A checkpoint that is saved in parts: which parts there are, and when there are no more.

Beside the final lies the hidden folder `.<leaf>.partial`. Each part is a checkpoint of its
own in it, committed as any other, and counts once an entry of the folder's log names it.
The log is a sequence of create-only objects, so that entries have one order, whoever writes
them: a part is compared with all that came before it, and none comes after `closed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from holdfast_metadata import ATTEMPT_FILE, AttemptMark, MetadataError
from holdfast_metadata.partial import PARTIAL_FILE, PartialEntry
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity, layout
from holdfast_storage.commit.record import read_record
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.values import IfAbsent

_log = logging.getLogger(__name__)
TTL_S = 7 * 24 * 3600.0
KIND = "partial"
_ENTRY = re.compile(r"(\d{8})\.json")
_PART = "part-"
_DEADLINE_S = 60.0
_UNCERTAIN = (errors.TransientStorageError, errors.StorageTimeoutError)
_Next = tuple[int, PartialEntry]
Admit = Callable[[Sequence[str]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PartialSession:
    """What the log of a final says.

    Attributes:
        final: The checkpoint that the parts are of.
        began: Number of the entry that ended the session before this one; 0 if none did.
        last: Number of the newest entry; 0 if there is none.
        parts: Ids of the parts that count, in order.
        closed: The entry that says that no more parts will come, if there is one.
    """

    final: str
    began: int = 0
    last: int = 0
    parts: tuple[str, ...] = ()
    closed: PartialEntry | None = None

    @property
    def begun(self) -> bool:
        """Whether there are parts that wait to be merged."""
        return bool(self.parts)

    def place(self, part: str) -> str:
        """The prefix that a part is committed at."""
        return keys.join(layout.partial(self.final), _PART + part)


async def read_session(backend: StorageBackend, final: str) -> PartialSession:
    """Reads the log of a final; writes nothing.

    Raises:
        RecordUnreadableError: An entry cannot be read.
    """
    while True:
        listing = await backend.children(layout.partial(final))
        found = [_number_of(info.key) for info in listing.objects]
        numbers = sorted(number for number in found if number is not None)
        try:
            read = await asyncio.gather(*(_entry(backend, final, n) for n in numbers))
        except errors.ObjectNotFoundError:
            continue  # cleared away since the listing
        return _understood(final, list(zip(numbers, read, strict=True)))


def _understood(final: str, entries: Sequence[tuple[int, PartialEntry]]) -> PartialSession:
    session = PartialSession(final)
    for number, entry in entries:
        if entry.kind == "ended":
            session = PartialSession(final, began=number)
        elif entry.kind == "closed":
            session = dataclasses.replace(session, closed=entry)
        elif session.closed is None:
            session = dataclasses.replace(session, parts=session.parts + entry.parts)
    last = entries[-1][0] if entries else 0
    return dataclasses.replace(session, last=last)


def _number_of(key: str) -> int | None:
    found = _ENTRY.fullmatch(keys.leaf(key))
    return int(found[1]) if found else None


def _number(final: str, number: int) -> str:
    return keys.join(layout.partial(final), f"{number:08}.json")


async def _entry(backend: StorageBackend, final: str, number: int) -> PartialEntry:
    key = _number(final, number)
    try:
        return PartialEntry.from_bytes(await backend.get(key), source=keys.leaf(key))
    except (MetadataError, errors.StoragePermissionError) as error:
        raise errors.RecordUnreadableError(
            f"an entry of the log of partial saves cannot be read: {error}",
            key=key,
            root=backend.root,
        ) from error


async def add_part(
    backend: StorageBackend, final: str, save: Callable[[str], Awaitable[str]], admit: Admit
) -> None:
    """Saves one part; it counts, whole and durable, on return.

    Args:
        backend: The store.
        final: The checkpoint that it is a part of.
        save: Commits the part at a prefix and returns its attempt.
        admit: Is told of parts that came before this one, each once, and raises if they do
            not go together with it.

    Raises:
        AttemptLostError: The parts were merged or given up meanwhile; this one is not in.
        CommitUnknownError: Whether the part counts could not be read back.
    """
    session = await read_session(backend, final)
    _refuse_closed(backend, session)
    await admit(session.parts)
    await _refresh_mark(backend, final)
    part = uuid.uuid4().hex
    attempt = await save(session.place(part))
    try:
        await carry_through(_append_part(backend, session, part, admit))
    except errors.CommitUnknownError:
        raise
    except BaseException:
        await _withdraw(backend, session.place(part), attempt)
        raise


async def _append_part(
    backend: StorageBackend, session: PartialSession, part: str, admit: Admit
) -> None:
    admitted = session.parts

    async def look() -> _Next | None:
        nonlocal admitted
        now = await read_session(backend, session.final)
        if part in now.parts:
            return None
        _refuse_closed(backend, now)
        mine, whole = await asyncio.gather(
            read_record(backend, session.place(part)), read_record(backend, session.final)
        )
        if whole.committed and await is_merged(backend, session.final, (part,)):
            return None
        another = now.began != session.began or now.last < session.last
        if another or not mine.committed or whole.committed:
            raise _lost(backend, session.final, "they were merged or given up meanwhile")
        await admit([other for other in now.parts if other not in admitted])
        admitted = now.parts
        return now.last + 1, PartialEntry("part", (part,))

    await _append(backend, session.final, look)
    await _beat(backend, keys.join(layout.partial(session.final), ATTEMPT_FILE))


async def close_session(backend: StorageBackend, final: str) -> PartialSession:
    """Says that no more parts will come; safe to repeat.

    Raises:
        CheckpointNotFoundError: There are no parts.
    """

    async def look() -> _Next | None:
        session = await read_session(backend, final)
        if session.closed is not None:
            return None
        if not session.begun:
            raise errors.CheckpointNotFoundError(
                "nothing was saved here in parts", key=final, root=backend.root
            )
        entry = PartialEntry("closed", session.parts, session=uuid.uuid4().hex)
        return session.last + 1, entry

    await carry_through(_append(backend, final, look))
    session = await read_session(backend, final)
    if session.closed is None:
        raise errors.CheckpointNotFoundError(
            "the parts saved here were merged or given up meanwhile", key=final, root=backend.root
        )
    return session


async def end_session(backend: StorageBackend, session: PartialSession) -> None:
    """Says that the parts are merged, or given up, and clears them away; safe to repeat."""
    about = session.closed.session if session.closed is not None else ""

    async def look() -> _Next | None:
        now = await read_session(backend, session.final)
        gone = session.last > 0 and now.last == 0
        if gone or now.began != session.began:
            return None
        return now.last + 1, PartialEntry("ended", session=about)

    with contextlib.suppress(errors.AttemptLostError):  # cleared away meanwhile
        await carry_through(_append(backend, session.final, look))
    await clear_session(backend, session.final)


async def is_merged(backend: StorageBackend, final: str, parts: Sequence[str]) -> bool:
    """Whether the checkpoint at a final holds these parts."""
    from holdfast_storage.commit.opening import open_committed

    try:
        area = await open_committed(backend, final, check_whole=False)
        found = PartialEntry.from_bytes(await area.get(PARTIAL_FILE))
    except (errors.CheckpointNotFoundError, errors.ObjectNotFoundError):
        return False
    return set(parts) <= set(found.parts)


async def _append(
    backend: StorageBackend, final: str, look: Callable[[], Awaitable[_Next | None]]
) -> None:
    """Writes the entry that `look` gives, where it says; None means that there is no need."""
    deadline = time.monotonic() + _DEADLINE_S
    pause = 0.05
    while (following := await look()) is not None:
        number, entry = following
        try:
            await backend.put(
                _number(final, number), entry.to_bytes(), condition=IfAbsent(), parents=False
            )
            # Look once more: the number may have been given before, and cleared away.
        except errors.ObjectExistsError:
            continue  # another came first, or this is the echo of a lost reply: look
        except errors.ObjectNotFoundError as error:
            raise _lost(backend, final, "their folder is gone") from error
        except _UNCERTAIN as error:
            if time.monotonic() > deadline:
                raise errors.CommitUnknownError(
                    f"whether the entry is in the log could not be read back: {error}",
                    key=final,
                    root=backend.root,
                ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)


async def clear_session(backend: StorageBackend, final: str) -> None:
    """Removes what an ended session left; anything newer stays.

    Where folders move, the whole one is moved away and deleted. Elsewhere the entry that
    ended the session stays, for a number is never given twice.
    """
    listing = await backend.children(layout.partial(final))
    session = await read_session(backend, final)
    if session.last == 0 or session.last != session.began:
        return
    if backend.capabilities.rename_prefix:
        await carry_through(_move_away(backend, session))
        return
    for info in listing.objects:
        number = _number_of(info.key)
        if number is not None and number < session.last:
            await backend.delete(info.key)
    for prefix in listing.prefixes:
        await backend.delete_prefix(prefix)


async def _move_away(backend: StorageBackend, session: PartialSession) -> None:
    folder = layout.partial(session.final)
    aside = layout.hidden(session.final, "retired", layout.new_attempt_id())
    try:
        await backend.rename_prefix(folder, aside)
    except errors.ObjectNotFoundError:
        return
    moved = [_number_of(info.key) or 0 for info in (await backend.children(aside)).objects]
    if max(moved, default=0) == session.last:
        await backend.delete_prefix(aside)
        return
    # Not the session that had ended: another was begun here in between.
    try:
        await backend.rename_prefix(aside, folder)
    except errors.ObjectExistsError:
        _log.exception("%s holds parts that were saved while others were cleared away", aside)


def _refuse_closed(backend: StorageBackend, session: PartialSession) -> None:
    if session.closed is not None:
        raise _lost(
            backend, session.final, "partial.finalize was called; call it again if it did not end"
        )


def _lost(backend: StorageBackend, final: str, why: str) -> errors.AttemptLostError:
    return errors.AttemptLostError(
        f"no more parts can be saved here, and this one was not: {why}",
        key=final,
        root=backend.root,
    )


async def _withdraw(backend: StorageBackend, place: str, attempt: str) -> None:
    """Removes a part that does not count; what is left of it goes with the session."""
    try:
        strategy = await backend.commit_strategy()
        await carry_through(strategy.retire(place, expected=attempt))
    except errors.StorageError:
        _log.warning("could not remove the refused part %s", place, exc_info=True)


async def _refresh_mark(backend: StorageBackend, final: str) -> None:
    """Says that somebody is at it: a session that is silent for a week is given up."""
    key = keys.join(layout.partial(final), ATTEMPT_FILE)
    mark = identity.new_mark(layout.new_attempt_id(), KIND, ttl_s=TTL_S)
    try:
        await backend.put(key, mark.to_bytes(), condition=IfAbsent())
    except errors.ObjectExistsError:
        await _beat(backend, key)


async def _beat(backend: StorageBackend, key: str) -> None:
    try:
        mark = AttemptMark.from_bytes(await backend.get(key))
        fresh = dataclasses.replace(mark, beat=mark.beat + 1)
        await backend.put(key, fresh.to_bytes(), durable=False, parents=False)
    except (errors.StorageError, MetadataError):
        _log.debug("could not refresh %s", key, exc_info=True)


async def ttl_of(backend: StorageBackend, folder: str) -> float | None:
    """How long a folder of parts may be silent; None if it carries no mark of ours."""
    try:
        mark = AttemptMark.from_bytes(await backend.get(keys.join(folder, ATTEMPT_FILE)))
    except (errors.ObjectNotFoundError, MetadataError):
        return None
    return mark.ttl_s if mark.kind == KIND else None
