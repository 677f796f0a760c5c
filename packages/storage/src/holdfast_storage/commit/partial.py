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
_OF_SESSION = re.compile(r"\.?part-(\d{8})-.*")
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
    return await _read_log(backend, final, layout.partial(final))


async def _read_log(backend: StorageBackend, final: str, folder: str) -> PartialSession:
    while True:
        listing = await backend.children(folder)
        found = [_number_of(info.key) for info in listing.objects]
        numbers = sorted(number for number in found if number is not None)
        try:
            read = await asyncio.gather(*(_entry(backend, folder, n) for n in numbers))
        except errors.ObjectNotFoundError:
            continue  # cleared away since the listing
        return _understood(final, list(zip(numbers, read, strict=True)))


def _understood(final: str, entries: Sequence[tuple[int, PartialEntry]]) -> PartialSession:
    session = PartialSession(final)
    for number, entry in entries:
        if entry.kind == "part":
            if session.closed is None:
                session = dataclasses.replace(session, parts=session.parts + entry.parts)
        elif not set(session.parts) <= set(entry.parts):
            continue  # of an earlier session: its writer slept while the folder was made anew
        elif entry.kind == "ended":
            session = PartialSession(final, began=number)
        else:
            session = dataclasses.replace(session, closed=entry)
    last = entries[-1][0] if entries else 0
    return dataclasses.replace(session, last=last)


def _number_of(key: str) -> int | None:
    found = _ENTRY.fullmatch(keys.leaf(key))
    return int(found[1]) if found else None


def _number(folder: str, number: int) -> str:
    return keys.join(folder, f"{number:08}.json")


async def _entry(backend: StorageBackend, folder: str, number: int) -> PartialEntry:
    key = _number(folder, number)
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
    await _recover_moved(backend, final)
    session = await read_session(backend, final)
    _refuse_closed(backend, session)
    await admit(session.parts)
    await _refresh_mark(backend, final)
    # By the number, whoever clears an ended session away knows that this is not of it.
    part = f"{session.began:08}-{uuid.uuid4().hex}"
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
    number = 0

    async def look() -> _Next | None:
        nonlocal admitted, number
        now = await read_session(backend, session.final)
        mine, whole = await asyncio.gather(
            read_record(backend, session.place(part)), read_record(backend, session.final)
        )
        if whole.committed and await is_merged(backend, session.final, (part,)):
            return None
        if part in now.parts and mine.committed:
            return None
        if part in now.parts:
            # The folder was moved away before the entry came: it stands in a new one.
            await backend.delete(_number(layout.partial(session.final), number))
            raise _lost(backend, session.final, "they were merged or given up meanwhile")
        _refuse_closed(backend, now)
        another = now.began != session.began or now.last < session.last
        if another or not mine.committed or whole.committed:
            raise _lost(backend, session.final, "they were merged or given up meanwhile")
        await admit([other for other in now.parts if other not in admitted])
        admitted = now.parts
        number = now.last + 1
        return number, PartialEntry("part", (part,))

    await _append(backend, session.final, look)
    await _beat(backend, keys.join(layout.partial(session.final), ATTEMPT_FILE))


async def close_session(backend: StorageBackend, final: str) -> PartialSession:
    """Says that no more parts will come; safe to repeat.

    Raises:
        CheckpointNotFoundError: There are no parts.
    """
    await _recover_moved(backend, final)
    first = (await read_session(backend, final)).parts[:1]
    if not first:
        raise errors.CheckpointNotFoundError(
            "nothing was saved here in parts", key=final, root=backend.root
        )

    async def look() -> _Next | None:
        session = await read_session(backend, final)
        if session.closed is not None or session.parts[:1] != first:
            return None
        entry = PartialEntry("closed", session.parts, session=uuid.uuid4().hex)
        return session.last + 1, entry

    await carry_through(_append(backend, final, look))
    await _recover_moved(backend, final)  # moved since: raises, for the log is closed
    session = await read_session(backend, final)
    if session.closed is None or session.parts[:1] != first:
        raise errors.CheckpointNotFoundError(
            "the parts saved here were merged or given up meanwhile", key=final, root=backend.root
        )
    return session


async def end_session(backend: StorageBackend, session: PartialSession) -> None:
    """Says that the parts are merged, and clears them away; safe to repeat."""

    async def look() -> _Next | None:
        now = await read_session(backend, session.final)
        # Parts begun here since then are another session's, whatever its number.
        if now.closed is None or now.parts[:1] != session.parts[:1]:
            return None
        return now.last + 1, PartialEntry("ended", now.parts, session=now.closed.session)

    await _end(backend, session.final, look)


async def give_up_session(backend: StorageBackend, session: PartialSession) -> None:
    """Says that the parts are given up, and clears them away; nothing if one came meanwhile."""

    async def look() -> _Next | None:
        now = await read_session(backend, session.final)
        if now != session:
            return None
        return now.last + 1, PartialEntry("ended", now.parts)

    await _end(backend, session.final, look)


async def _end(
    backend: StorageBackend, final: str, look: Callable[[], Awaitable[_Next | None]]
) -> None:
    with contextlib.suppress(errors.AttemptLostError):  # cleared away meanwhile
        await carry_through(_append(backend, final, look))
    await clear_session(backend, final)


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
                _number(layout.partial(final), number),
                entry.to_bytes(),
                condition=IfAbsent(),
                parents=False,
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
        of_session = _OF_SESSION.fullmatch(keys.leaf(prefix))
        if of_session is not None and int(of_session[1]) < session.last:
            await backend.delete_prefix(prefix)


async def _move_away(backend: StorageBackend, session: PartialSession) -> None:
    aside = layout.hidden(session.final, "retired", layout.new_attempt_id())
    try:
        await backend.rename_prefix(layout.partial(session.final), aside)
    except errors.ObjectNotFoundError:
        return
    await settle_moved(backend, session.final, aside)


async def _recover_moved(backend: StorageBackend, final: str) -> None:
    """Puts back what others moved away by mistake, and had no time to put back."""
    if not backend.capabilities.rename_prefix:
        return
    for prefix in (await backend.children(keys.parent(final))).prefixes:
        found = layout.parse_hidden(keys.leaf(prefix))
        if found is not None and found.kind == "retired" and found.leaf == keys.leaf(final):
            await settle_moved(backend, final, prefix)


async def settle_moved(backend: StorageBackend, final: str, aside: str) -> bool:
    """Deletes an ended session that was moved away; puts another back, for it is alive.

    Anybody may do so, at any time: the folder is whole until it has its last name.

    Returns:
        Whether it was a session at all.
    """
    moved = await _read_log(backend, final, aside)
    if moved.last == 0:
        return False
    if moved.last != moved.began and await _put_back(backend, moved, aside):
        return True
    dead = layout.hidden(final, "dead", layout.new_attempt_id(), unique=True)
    with contextlib.suppress(errors.ObjectNotFoundError):
        await backend.rename_prefix(aside, dead)
        await backend.delete_prefix(dead)
    return True


async def _put_back(backend: StorageBackend, moved: PartialSession, aside: str) -> bool:
    """Puts a session back; True if the folder itself is where it was, or somebody else did so.

    If parts were saved there in between, those that were moved away join them.
    """
    folder = layout.partial(moved.final)
    try:
        await backend.rename_prefix(aside, folder)
    except errors.ObjectNotFoundError:
        return True
    except errors.ObjectExistsError:
        _log.warning("%s was moved away while parts were saved in it; putting them back", folder)
    else:
        return True
    for part in moved.parts:
        with contextlib.suppress(errors.ObjectNotFoundError):  # moved by another call
            await backend.rename_prefix(keys.join(aside, _PART + part), moved.place(part))

    async def look() -> _Next | None:
        now = await read_session(backend, moved.final)
        missing = tuple(part for part in moved.parts if part not in now.parts)
        if not missing:
            return None
        _refuse_closed(backend, now)
        return now.last + 1, PartialEntry("part", missing)

    await carry_through(_append(backend, moved.final, look))
    return False


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
