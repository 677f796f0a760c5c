"""What concerns directories, the commit, and deletion."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar

from holdfast_checkpointer.options.checks import member, refuse_unless, refuse_unless_positive


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What concerns files and directories.

    Attributes:
        path_permission_mode: Mode of each directory of a checkpoint, for example `0o770`, on
            storage that has directories; the owner keeps all rights. None leaves it to the
            process's umask. Storage without directories refuses it when it is used.
        path_class: None, or `etils.epath.Path`. Paths are text and URLs here, and the storage
            follows from them.
        skip_sync_file_validations: `AsyncCheckpointer.save` does not ask beforehand whether the
            place is taken: it is told in the background then, by the commit, which decides in
            either case. The functions never ask beforehand.
        spool_directory: Where the files of handlers written by users lie meanwhile, on storage
            that has no folders to write into; None takes the system's temporary directory.
        spool_bytes: How much one item's files may be there.
    """

    path_permission_mode: int | None = None
    path_class: type | None = None
    skip_sync_file_validations: bool = False
    spool_directory: str | None = None
    spool_bytes: int = 32 << 30

    def __post_init__(self) -> None:
        if self.spool_bytes is None:
            raise ValueError("spool_bytes must be a whole number of at least 1, got None")
        refuse_unless_positive("spool_bytes", self.spool_bytes)
        mode: Any = self.path_permission_mode
        if mode is not None and not _is_mode(mode):
            shown = oct(mode) if isinstance(mode, int) else repr(mode)
            raise ValueError(
                "path_permission_mode must be None or mode bits in which the owner may read, "
                f"write and enter (such as 0o750), got {shown}"
            )
        refuse_unless(
            self.path_class is None or _is_epath(self.path_class),
            "path_class",
            self.path_class,
            accepts="None or etils.epath.Path",
            because="the storage backend of a URL does the work that a path class would",
        )


class AtomicityMode(enum.Enum):
    """How a checkpoint becomes visible.

    Attributes:
        AUTO: As the storage does it best: by a rename on disks, else by a commit record.
        COMMIT_FILE: By a file that is written last.
        ATOMIC_RENAME: By a rename.
    """

    AUTO = "auto"
    COMMIT_FILE = "commit_file"
    ATOMIC_RENAME = "atomic_rename"


@dataclass(frozen=True, kw_only=True)
class AtomicityOptions:
    """How a checkpoint becomes visible.

    Attributes:
        mode: An `AtomicityMode` or its text. Other than "auto" it is a requirement: storage that
            commits in the other way refuses the save, before anything is written.
        allow_legacy_atomic_rename: Take what Orbax wrote for a checkpoint on object stores too
            where `commit_success.txt` is missing. There that is how a save of Orbax's looks that
            was never finished; but old versions wrote no such file on disks, and one of their
            checkpoints may have been copied from there. On disks it is not needed.
    """

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", member(AtomicityMode, "mode", self.mode))


@dataclass(frozen=True, kw_only=True)
class GcsDeletionOptions:
    """Deletion on Google Cloud Storage; also called `DeletionOptions.GcsDeletionOptions`.

    Attributes:
        todelete_full_path: Only None is accepted.
    """

    todelete_full_path: str | None = None

    def __post_init__(self) -> None:
        refuse_unless(
            self.todelete_full_path is None,
            "todelete_full_path",
            self.todelete_full_path,
            accepts="None",
            because="a deletion removes the data; to keep a checkpoint, copy it first",
        )


_Gcs = GcsDeletionOptions  # for `DeletionOptions`, in which the name is an attribute


@dataclass(frozen=True, kw_only=True)
class DeletionOptions:
    """How checkpoints are deleted.

    Attributes:
        gcs_deletion_options: See `GcsDeletionOptions`.
    """

    GcsDeletionOptions: ClassVar[type[_Gcs]] = GcsDeletionOptions

    gcs_deletion_options: _Gcs = field(default_factory=GcsDeletionOptions)


def _is_mode(value: Any) -> bool:
    """Whether these are mode bits of a directory in which its owner can write a checkpoint."""
    number = isinstance(value, int) and not isinstance(value, bool)
    return number and 0 <= value <= 0o7777 and value & 0o700 == 0o700


def _is_epath(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and kind.__name__ == "Path"
        and kind.__module__.startswith("etils.epath")
    )
