"""The commit protocol: how an attempt becomes a checkpoint, all of it or none."""

from holdfast_storage.commit.copying import (
    copy_checkpoint,
    copy_files,
    copy_folders,
    rewrite_checkpoint,
)
from holdfast_storage.commit.decided import DecidedRenameCommit
from holdfast_storage.commit.heartbeat import heartbeat
from holdfast_storage.commit.hints import list_hints, remove_hint, write_hint
from holdfast_storage.commit.layout import EMPTY_FOLDER
from holdfast_storage.commit.occupancy import Occupant, occupant
from holdfast_storage.commit.opening import (
    CommittedArea,
    CommittedEntry,
    CommittedListing,
    FileReport,
    PlainArea,
    list_committed,
    open_committed,
    open_plain,
    read_records,
    reading,
    unless_changed,
    verify,
)
from holdfast_storage.commit.pace import Pace
from holdfast_storage.commit.partial import (
    PartialSession,
    add_part,
    close_session,
    end_session,
    is_merged,
    read_session,
)
from holdfast_storage.commit.pointer import PointerCommit
from holdfast_storage.commit.record import StoredRecord, read_record
from holdfast_storage.commit.rename import RenameCommit
from holdfast_storage.commit.shelter import SHELTER_FILE, shelter
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.staging import StagingArea
from holdfast_storage.commit.strategy import CommitStrategy, Removal, SweepReport, Transaction
from holdfast_storage.commit.survey import Survey, survey
from holdfast_storage.commit.trash import Trash, TrashEntry
from holdfast_storage.commit.writing import Fellows, take_part, withdraw, write_attempt

__all__ = [
    "EMPTY_FOLDER",
    "SHELTER_FILE",
    "CommitStrategy",
    "CommittedArea",
    "CommittedEntry",
    "CommittedListing",
    "DecidedRenameCommit",
    "Fellows",
    "FileReport",
    "Occupant",
    "Pace",
    "PartialSession",
    "PlainArea",
    "PointerCommit",
    "Removal",
    "RenameCommit",
    "StagingArea",
    "StoredRecord",
    "Survey",
    "SweepReport",
    "Transaction",
    "Trash",
    "TrashEntry",
    "add_part",
    "carry_through",
    "close_session",
    "copy_checkpoint",
    "copy_files",
    "copy_folders",
    "end_session",
    "heartbeat",
    "is_merged",
    "list_committed",
    "list_hints",
    "occupant",
    "open_committed",
    "open_plain",
    "read_record",
    "read_records",
    "read_session",
    "reading",
    "remove_hint",
    "rewrite_checkpoint",
    "shelter",
    "survey",
    "take_part",
    "unless_changed",
    "verify",
    "withdraw",
    "write_attempt",
    "write_hint",
]
