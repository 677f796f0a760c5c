"""Names that the commit protocol gives to folders and files."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from holdfast_metadata import COMMIT_FILE, MANIFEST_FILE
from holdfast_storage import errors, keys

ADVISORY_FILE = "commit_success.txt"
# An object store has no folders, so an empty one is a file of this name in it.
EMPTY_FOLDER = ".holdfast-empty-folder"
DISPLACED_FILE = "_DISPLACED"
INNER_PREFIX = "attempt-"
CLOCK_PREFIX = ".holdfast-clock-"
PROBE_PREFIX = ".holdfast-probe-"
PASSING_PREFIXES = (CLOCK_PREFIX, PROBE_PREFIX)  # empty objects that exist for a moment
PARTIAL_SUFFIX = ".partial"
EXPECTS = "expects"  # in a staged record: the attempt that a replacement means to displace
OURS = (COMMIT_FILE, MANIFEST_FILE)
_HIDDEN = re.compile(
    r"\.(?P<leaf>.+)\.(?P<kind>attempt|dead|displaced|leaving|orbax|retired)-(?P<attempt>[0-9a-f]{32})"
    r"(-(?P<suffix>[0-9a-f]+))?"
)
_IN_ATTEMPT = re.compile(r"(^|/)(attempt-|\.[^/]+\.attempt-)[0-9a-f]{32}/")

_PARTIAL = re.compile(rf"\.(?P<leaf>.+){re.escape(PARTIAL_SUFFIX)}")


@dataclass(frozen=True, slots=True)
class HiddenName:
    """A hidden folder of ours beside a final.

    Attributes:
        leaf: Last segment of the final.
        kind: `attempt`, `dead`, `displaced`, `leaving`, `orbax` (moved out to be deleted) or
            `retired`.
        attempt: The attempt's id.
        epoch: With `leaving`, of the writer that removes it; else 0.
    """

    leaf: str
    kind: str
    attempt: str
    epoch: int = 0


def new_attempt_id() -> str:
    """A unique id."""
    return uuid.uuid4().hex


def hidden(final: str, kind: str, attempt: str, *, unique: bool = False) -> str:
    """The hidden sibling of `final` for an attempt."""
    suffix = f"-{uuid.uuid4().hex[:8]}" if unique else ""
    return keys.join(keys.parent(final), f".{keys.leaf(final)}.{kind}-{attempt}{suffix}")


def decision(final: str) -> str:
    """The hidden sibling object that decides where a rename cannot."""
    return keys.join(keys.parent(final), f".{keys.leaf(final)}.commit")


def partial(final: str) -> str:
    """The hidden sibling folder in which a final's parts are saved."""
    return keys.join(keys.parent(final), f".{keys.leaf(final)}{PARTIAL_SUFFIX}")


def parse_partial(name: str) -> str | None:
    """The leaf whose parts a hidden folder holds, or None if it is none of those."""
    found = _PARTIAL.fullmatch(name)
    return found["leaf"] if found else None


def parse_hidden(name: str) -> HiddenName | None:
    """What a hidden folder's name says, or None if it is not ours."""
    found = _HIDDEN.fullmatch(name)
    if found is None:
        return None
    epoch = int(found["suffix"] or "0", 16) if found["kind"] == "leaving" else 0
    return HiddenName(found["leaf"], found["kind"], found["attempt"], epoch)


def leaving(final: str, attempt: str, epoch: int) -> str:
    """Where a checkpoint is while its removal, by the holder of an epoch, is being decided."""
    return f"{hidden(final, 'leaving', attempt)}-{epoch:08x}"


def inner(final: str, attempt: str) -> str:
    """The folder of an attempt inside its final."""
    return keys.join(final, INNER_PREFIX + attempt)


def in_attempt(path: str) -> bool:
    """Whether a path lies in an attempt, inside its final or beside it."""
    return _IN_ATTEMPT.search(path) is not None


def check_final(final: str, *, root: str) -> str:
    """Refuses what can never be a final (rule R6)."""
    keys.check_key(final, root=root)
    if keys.leaf(final).startswith("."):
        raise errors.InvalidKeyError(
            "a checkpoint's name does not start with '.', which marks unfinished work",
            key=final,
            root=root,
        )
    return final
