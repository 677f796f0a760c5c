"""The grammar of keys and prefixes: `/`-separated, matched by whole segments."""

from __future__ import annotations

from holdfast_storage import errors


def check_key(key: str, *, root: str = "") -> str:
    """Returns `key` if it is one: non-empty segments, none of them `.` or `..`.

    Raises:
        InvalidKeyError: Otherwise, before any I/O.
    """
    if not isinstance(key, str):
        raise errors.InvalidKeyError(f"a key is text, got {type(key).__name__}", root=root)
    if not key or any(part in ("", ".", "..") or "\0" in part for part in key.split("/")):
        raise errors.InvalidKeyError(
            "a key has non-empty segments separated by '/', none of them '.' or '..'",
            key=key,
            root=root,
        )
    try:
        key.encode("utf-8", "surrogateescape")  # as a file name that is no UTF-8 comes from a disk
    except UnicodeEncodeError as error:
        raise errors.InvalidKeyError(
            f"a key is text that UTF-8 can hold: {error.reason}", key=key, root=root
        ) from error
    return key


def check_prefix(prefix: str, *, root: str = "") -> str:
    """Like `check_key`, but the empty prefix (the root) is one too."""
    return prefix if prefix == "" else check_key(prefix, root=root)


def join(*parts: str) -> str:
    """Joins prefixes and keys; empty parts vanish."""
    return "/".join(part for part in parts if part)


def parent(key: str) -> str:
    """The prefix above `key`; "" at the top."""
    return key.rpartition("/")[0]


def leaf(key: str) -> str:
    """The last segment of `key`."""
    return key.rpartition("/")[2]


def is_under(key: str, prefix: str) -> bool:
    """Whether `key` lies below `prefix` (whole segments, never the prefix itself)."""
    return prefix == "" or key.startswith(prefix + "/")


def relative(key: str, prefix: str) -> str:
    """`key` without `prefix`; the caller knows that it lies below."""
    return key if prefix == "" else key[len(prefix) + 1 :]
