"""Reading and changing the commit record: three answers, never two (rule R6)."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_metadata import COMMIT_FILE, CommitRecord, MetadataError
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.values import IfAbsent, IfVersion, ObjectInfo, Precondition


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What a final's record said, and which version of it.

    Attributes:
        record: None if there is provably none.
        info: The object's version and time; None if there is none.
    """

    record: CommitRecord | None = None
    info: ObjectInfo | None = None

    @property
    def committed(self) -> bool:
        """Whether a checkpoint is visible."""
        return self.record is not None and self.record.committed

    @property
    def attempt(self) -> str | None:
        """The attempt that is committed, or None."""
        return self.record.attempt if self.record is not None and self.record.committed else None

    @property
    def dead(self) -> tuple[str, ...]:
        """Attempts that can never be committed here."""
        return self.record.dead if self.record is not None else ()

    def in_trash(self, attempt: str) -> bool:
        """Whether an attempt's data is here and in the trash: nobody but the trash deletes it."""
        return self.record is not None and self.record.in_trash(attempt) is not None

    @property
    def unchanged(self) -> Precondition:
        """The condition that nothing has changed since this was read."""
        return IfVersion(self.info.version) if self.info is not None else IfAbsent()


async def read_record(backend: StorageBackend, final: str) -> StoredRecord:
    """Reads the record of `final`.

    Raises:
        RecordUnreadableError: Something is there that cannot be read: damage, a newer version
            (`NewerFormatError` is then its cause), or no access, which is a
            `RecordForbiddenError`. Neither committed nor absent; leave it alone.
        StorageError: The store did not answer.
    """
    return await read_record_at(backend, keys.join(final, COMMIT_FILE))


async def read_record_at(backend: StorageBackend, key: str) -> StoredRecord:
    """Reads the record in one object; see `read_record`."""
    try:
        info, data = await backend.read(key)
    except errors.ObjectNotFoundError:
        return StoredRecord()
    except errors.StoragePermissionError as error:
        said = str(error).removesuffix(f" [{key!r} in {backend.root}]")  # told once, below
        raise errors.RecordForbiddenError(
            f"the commit record cannot be read: {said}", key=key, root=backend.root
        ) from error
    return StoredRecord(_parse(backend, key, data), info)


def _parse(backend: StorageBackend, key: str, data: bytes) -> CommitRecord:
    try:
        return CommitRecord.from_bytes(data, source=COMMIT_FILE)
    except MetadataError as error:
        raise errors.RecordUnreadableError(
            f"the commit record cannot be read: {error}", key=key, root=backend.root
        ) from error
