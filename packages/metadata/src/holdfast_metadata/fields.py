"""Reading typed fields out of parsed JSON, with errors that name document and field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from holdfast_metadata.errors import MetadataError, NewerFormatError
from holdfast_metadata.json_codec import parse_json


class Fields:
    """The fields of one JSON object; what is not taken is `rest`."""

    __slots__ = ("_left", "source")

    def __init__(self, value: Any, *, source: str) -> None:
        if not isinstance(value, dict):
            raise MetadataError(f"{source} must be a JSON object, found {_kind(value)}")
        self._left = dict(value)
        self.source = source

    @classmethod
    def parse(cls, data: bytes, *, source: str, lenient: bool = False) -> Fields:
        """Parses a document that is one object."""
        return cls(parse_json(data, source=source, lenient=lenient), source=source)

    def version(self, supported: int) -> int:
        """Takes `format_version`.

        Raises:
            NewerFormatError: It is newer than `supported`.
        """
        found: int = self.take("format_version", int)
        if found > supported:
            raise NewerFormatError(
                f"{self.source} has format version {found}; this holdfast reads up to "
                f"{supported}. Install a newer holdfast to read it."
            )
        if found < 1:
            raise MetadataError(f"{self.source}: format_version must be at least 1, found {found}")
        return found

    def take(self, name: str, *kinds: type | None, default: Any = ...) -> Any:
        """Takes a field of one of `kinds`; None among them admits null."""
        value = self._left.pop(name, ...)
        if value is ...:
            if default is ...:
                raise MetadataError(f"{self.source} lacks the field {name!r}")
            return default
        if not _is_one_of(value, kinds):
            accepted = " or ".join("null" if kind is None else kind.__name__ for kind in kinds)
            raise MetadataError(f"{self.source}: {name!r} must be {accepted}, found {_kind(value)}")
        return value

    def take_list(self, name: str, kind: type, default: Any = ...) -> tuple[Any, ...]:
        """Takes a list whose elements are all of one kind."""
        values = self.take(name, list, default=default)
        for value in values:
            if type(value) is not kind:
                raise MetadataError(
                    f"{self.source}: {name!r} must hold {kind.__name__}, found {_kind(value)}"
                )
        return tuple(values)

    def choice(self, name: str, allowed: Collection[str]) -> str:
        """Takes a string that is one of `allowed`."""
        value: str = self.take(name, str)
        if value not in allowed:
            raise MetadataError(
                f"{self.source}: {name!r} must be one of {', '.join(allowed)}, found {value!r}"
            )
        return value

    @property
    def rest(self) -> dict[str, Any]:
        """The fields that nobody took."""
        return self._left


def merge_extra(known: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Known fields plus the unknown ones that were read; the known win."""
    return {**extra, **known} if extra else known


def is_relative_path(path: str) -> bool:
    """Whether segments are joined by `/`, none of them empty, `.` or `..`."""
    return not any(part in ("", ".", "..") for part in path.split("/"))


def _is_one_of(value: Any, kinds: tuple[type | None, ...]) -> bool:
    return (None if value is None else type(value)) in kinds


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.60}"
