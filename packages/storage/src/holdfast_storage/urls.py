"""From what a user writes to where it is: paths, `~`, URLs, and what they are relative to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast_storage import errors

ROOT_VARIABLE = "HOLDFAST_ROOT"
LOCAL_SCHEME = "file"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]+)://(?P<rest>.*)", re.DOTALL)
_BROKEN_URL = re.compile(r"[^/]*:/")  # what pathlib makes of a URL, for one: it drops a slash
_CREDENTIALS = re.compile(r"[^/]*:[^/]*@")


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a store.

    Attributes:
        scheme: Names the backend, in lower case.
        path: Below the scheme: an absolute path, or bucket and prefix.
    """

    scheme: str
    path: str

    @property
    def url(self) -> str:
        """The canonical URL."""
        return f"{self.scheme}://{self.path}"

    def split(self) -> tuple[Location, str]:
        """The place above, and the last segment.

        Raises:
            InvalidURLError: There is nothing above: a checkpoint needs a name of its own.
        """
        above, _, last = self.path.rpartition("/")
        if not last or not (above or self.scheme == LOCAL_SCHEME):
            raise errors.InvalidURLError(
                f"{self.url} names a whole store; a checkpoint needs a name inside it, "
                f"such as {self.url.rstrip('/')}/my-run"
            )
        return Location(self.scheme, above or "/"), last


def resolve_url(path: str | os.PathLike[str], *, env: Mapping[str, str] | None = None) -> Location:
    """Resolves a path or URL, now.

    A relative one is taken below `HOLDFAST_ROOT`, itself a path or URL; without it, below
    the working directory. `..` is resolved in the text, not on the disk.

    Raises:
        InvalidURLError: It is empty, or no place can be made of it; the message says what
            would be accepted.
        TypeError: It is neither text nor `os.PathLike`.

    Examples:
        >>> env = {"HOLDFAST_ROOT": "memory://team/ml"}
        >>> resolve_url("runs/x", env=env).url
        'memory://team/ml/runs/x'
    """
    variables = os.environ if env is None else env
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"a path or URL is text or os.PathLike, got {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise errors.InvalidURLError(f"a path is text, got {text!r}")
    if not text.strip() or "\0" in text:
        raise errors.InvalidURLError(
            f"{text!r} is no path or URL; give /absolute/path, relative/path or "
            "<scheme>://bucket/prefix"
        )
    return _absolute(text) or _below_root(text, variables)


def _absolute(text: str) -> Location | None:
    """The place that `text` names by itself; None if it is relative."""
    if _URL.fullmatch(text):
        return _from_url(text)
    if _BROKEN_URL.match(text):
        raise errors.InvalidURLError(
            f"{text!r} is no URL: write <scheme>://bucket/prefix, as text and not as a "
            f"pathlib.Path, which drops a slash; for a folder of that name write './{text}'"
        )
    if text.startswith("~"):
        text = os.path.expanduser(text)
        if text.startswith("~"):
            raise errors.InvalidURLError(
                f"{text!r}: no such user; for a folder of that name write './{text}'"
            )
    return _from_path(text) if os.path.isabs(text) else None


def _below_root(text: str, env: Mapping[str, str]) -> Location:
    root = env.get(ROOT_VARIABLE)
    if root is None:
        return _from_path(str(Path.cwd() / text))
    if not root.strip():
        raise errors.InvalidURLError(
            f"{text!r} is relative and {ROOT_VARIABLE} is empty; set it to a path or URL, "
            "unset it to use the working directory, or give an absolute path"
        )
    base = _absolute(root) or _from_path(str(Path.cwd() / root))
    if base.scheme == LOCAL_SCHEME:
        return _from_path(os.path.join(base.path, text))
    return _from_url(f"{base.url.rstrip('/')}/{text}")


def _from_path(text: str) -> Location:
    # POSIX lets two leading slashes mean something else, and normpath keeps them.
    return Location(LOCAL_SCHEME, os.path.normpath("/" + text.lstrip("/")))


def _from_url(text: str) -> Location:
    matched = _URL.fullmatch(text)
    assert matched is not None
    scheme, rest = matched["scheme"].lower(), matched["rest"]
    if scheme == LOCAL_SCHEME:
        if not rest.startswith("/"):
            raise errors.InvalidURLError(
                f"{text!r} names a host; write {scheme}:///absolute/path or just the path"
            )
        return _from_path(rest)
    if _CREDENTIALS.match(rest):
        raise errors.InvalidURLError(  # without the text: it would show the secret
            f"credentials in a URL of {scheme}; they go into options or the environment"
        )
    if "?" in rest or "#" in rest:
        raise errors.InvalidURLError(
            f"{text!r} has a query or fragment; settings go into options or the environment"
        )
    bucket, _, prefix = rest.partition("/")
    if bucket in ("", ".", ".."):
        raise errors.InvalidURLError(f"{text!r} lacks a bucket: {scheme}://bucket/prefix")
    parts: list[str] = []
    for part in prefix.split("/"):
        if part == "..":
            if not parts:
                raise errors.InvalidURLError(
                    f"{text!r} leads out of its bucket with '..'; stay below {scheme}://{bucket}"
                )
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return Location(scheme, "/".join([bucket, *parts]))
