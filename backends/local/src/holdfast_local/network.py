"""Network file systems, whose caches may deny what is there (rule R10)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_PLAIN = ("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "lustre", "beegfs", "gpfs", "ceph")
_KINDS = frozenset((*_PLAIN, "fuse.sshfs", "fuse.glusterfs"))
_ESCAPED = re.compile(r"\\([0-7]{3})")  # the kernel writes a space in a path as \040


def is_network(path: str) -> bool:
    """Whether `path` lies on a network file system, by the kernel's list of mounts."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            return kind_of(os.path.realpath(path), mounts) in _KINDS
    except (OSError, IndexError):
        return False


def kind_of(path: str, mounts: Iterable[str]) -> str:
    """The type of the file system that holds `path`, from lines of `mountinfo`.

    Examples:
        >>> kind_of("/a/b", ["1 0 0:1 / / rw - ext4 x rw", "2 1 0:2 / /a rw - nfs4 s:/ rw"])
        'nfs4'
    """
    best, kind = "", ""
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields.split()[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount covers an earlier one
            best, kind = point, rest.split()[0]
    return kind


def still_listed(path: str) -> bool:
    """Whether a fresh listing of the parent shows a file that a stale cache denied.

    Opening the folder anew makes the client ask the server, which a stat does not.
    """
    folder, name = os.path.split(path)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with os.scandir(descriptor) as listing:
            return any(e.name == name and not e.is_dir(follow_symlinks=False) for e in listing)
    except OSError:
        return False
    finally:
        os.close(descriptor)
