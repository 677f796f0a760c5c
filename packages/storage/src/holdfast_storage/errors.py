"""Errors of storage and of the commit protocol.

Every error names the key it is about and the root of the backend. The SDK's or
the operating system's own exception, where there is one, is its `__cause__`.
"""

from __future__ import annotations

from holdfast_metadata.errors import HoldfastError


class StorageError(HoldfastError):
    """A storage operation failed.

    Attributes:
        key: The key or prefix the operation was about, relative to `root`.
        root: The root of the backend, for a person to read.
    """

    def __init__(self, message: str, *, key: str = "", root: str = "") -> None:
        places = [*([repr(key)] if key else []), *([root] if root else [])]
        where = f" [{' in '.join(places)}]" if places else ""
        super().__init__(message + where)
        self.key = key
        self.root = root


class InvalidKeyError(StorageError, ValueError):
    """A key has an empty, `.` or `..` segment, or is not text."""


class InvalidURLError(StorageError, ValueError):
    """A URL or a storage setting cannot be understood."""


class UnknownSchemeError(InvalidURLError):
    """No installed backend claims the URL's scheme; the message says what to install."""


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """The store proved that nothing is there (404, ENOENT)."""


class ObjectExistsError(StorageError, FileExistsError):
    """Create-only lost: something is already there, and it was not touched."""


class PreconditionFailedError(StorageError):
    """The object is not the version the caller read; it was not touched."""


class UnsupportedOperationError(StorageError, NotImplementedError):
    """The store cannot do this. It was refused, not approximated."""


class StoragePermissionError(StorageError, PermissionError):
    """The store refused access (403, EACCES, EPERM, EROFS)."""


class StorageFullError(StorageError, OSError):
    """No space or quota left (ENOSPC, EDQUOT)."""


class StorageTimeoutError(StorageError, TimeoutError):
    """A request ran past its deadline; its outcome is unknown."""


class TransientStorageError(StorageError):
    """A failure that may pass (429, 5xx, a dropped connection); the outcome is unknown."""


class CommitError(StorageError):
    """A commit did not happen, or it is not known that it did."""


class CommitConflictError(CommitError, FileExistsError, ValueError):
    """Another attempt is committed at the destination; it is complete and untouched.

    A `ValueError` too: Orbax's v0 checkpointers raise one here, its v1 functions the other.
    """


class DestinationOccupiedError(CommitError, FileExistsError, ValueError):
    """The destination holds something that holdfast did not write; it was not touched."""


class AttemptLostError(CommitError):
    """This attempt was fenced or its data swept; it can never be committed."""


class CommitUnknownError(CommitError):
    """The decision was sent and its outcome could not be read back.

    Nothing was deleted: the destination holds this attempt's complete checkpoint,
    somebody else's, or nothing. Ask again with `read_record`.
    """


class LeaseHeldError(CommitError, RuntimeError):
    """Another process writes to this run; nothing was written.

    Attributes:
        host: Where it runs.
        pid: Its process id there.
    """

    def __init__(
        self, message: str, *, host: str = "", pid: int = 0, key: str = "", root: str = ""
    ) -> None:
        super().__init__(message, key=key, root=root)
        self.host = host
        self.pid = pid


class LeaseLostError(CommitError, RuntimeError):
    """Another process has taken this run over: this one can commit and remove nothing more."""


class InvalidLayoutError(StorageError, FileNotFoundError, ValueError):
    """There is no checkpoint of the layout that was asked for; the message says what is there.

    A `ValueError` as Orbax has it, and a `FileNotFoundError` as its documentation has it.
    """


class CheckpointNotFoundError(InvalidLayoutError):
    """No checkpoint is committed there; the message says what is there instead."""


class UnfinishedCheckpointError(CheckpointNotFoundError):
    """Only a save that was never committed is there."""


class CheckpointDeletedError(CheckpointNotFoundError):
    """The checkpoint was deleted while it was being read."""


class CheckpointChangedError(StorageError):
    """The checkpoint was replaced while it was being read, more often than we retried."""


class RecordUnreadableError(StorageError, ValueError):
    """A commit record exists but cannot be read (damage, access, newer version).

    The third answer: neither committed nor absent. Such a checkpoint is reported and
    left alone, never collected and never overwritten.
    """


class RecordForbiddenError(RecordUnreadableError, StoragePermissionError):
    """A commit record may exist, and may not be read: access was refused."""


class DamagedCheckpointError(StorageError, ValueError):
    """Bytes differ from what was saved; nothing of them was returned.

    Attributes:
        file: The damaged file, relative to the checkpoint.
        leaf: The leaf it belongs to, if known.
    """

    def __init__(
        self, message: str, *, file: str = "", leaf: str = "", key: str = "", root: str = ""
    ) -> None:
        super().__init__(message, key=key, root=root)
        self.file = file
        self.leaf = leaf


class IncompleteCheckpointError(DamagedCheckpointError):
    """Committed but not whole: files of the manifest are missing or have another size."""
