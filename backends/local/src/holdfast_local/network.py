"""Network file systems, whose caches may deny what is there (rule R10)."""

from __future__ import annotations

import functools
import os

_KINDS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "beegfs", "gpfs", "ceph")


@functools.lru_cache(maxsize=64)
def is_network(path: str) -> bool:
    """Whether `path` lies on a network file system, by the kernel's list of mounts."""
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                fields, _, rest = line.partition(" - ")
                point = fields.split()[4]
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) > len(best):
                    best, kind = point, rest.split()[0]
    except (OSError, IndexError):
        return False
    return kind in _KINDS


def still_listed(path: str) -> bool:
    """Whether a fresh listing of the parent shows `path`, which a stale cache denied."""
    folder, name = os.path.split(path)
    try:
        return name in os.listdir(folder)
    except OSError:
        return False
