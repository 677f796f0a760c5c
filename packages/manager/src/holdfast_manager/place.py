"""Where a run or a step is: text that joins as a path does."""

from __future__ import annotations

from os import PathLike
from typing import Self


class Place(str):
    """A path or URL. It is text, and `/` makes the place of something in it, on any storage.

    `pathlib.Path`, `epath.Path`, `open` and holdfast's functions take it as it is.

    Examples:
        >>> Place("gs://bucket/run") / "300" / "state"
        Place('gs://bucket/run/300/state')
        >>> Place("/scratch/run").name
        'run'
    """

    __slots__ = ()

    def __truediv__(self, name: str | PathLike[str]) -> Self:
        return type(self)(f"{self.rstrip('/')}/{name}")

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    @property
    def name(self) -> str:
        """The last segment."""
        return self.rstrip("/").rpartition("/")[2]
