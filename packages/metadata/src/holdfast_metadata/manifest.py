"""`_MANIFEST.jsonl`: every file of a checkpoint with its size and, where known, digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.digest import digest_bytes
from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, is_relative_path, merge_extra
from holdfast_metadata.json_codec import canonical_json

MANIFEST_FILE = "_MANIFEST.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One file.

    Attributes:
        path: Relative to the attempt's data.
        size: In bytes.
        digest: Of the whole file; None where the bytes went through TensorStore, whose
            chunks have digests of their own.
        extra: Fields this version does not know, kept.
    """

    path: str
    size: int
    digest: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, slots=True, init=False)
class Manifest:
    """The files of one attempt.

    Attributes:
        entries: Sorted by path, whatever the order in which they were given.
        format_version: Of the document.
        extra: Fields of the first line that this version does not know, kept.
        by_path: The entries by path.

    Raises:
        MetadataError: A path is listed twice or is no relative path, or a size is negative.

    Examples:
        >>> Manifest([ManifestEntry("b", 1), ManifestEntry("a", 2)]).total_bytes
        3
    """

    entries: tuple[ManifestEntry, ...]
    format_version: int
    extra: Mapping[str, Any] = field(hash=False)
    by_path: Mapping[str, ManifestEntry] = field(repr=False, compare=False)

    def __init__(
        self,
        entries: Iterable[ManifestEntry],
        format_version: int = FORMAT_VERSION,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        ordered = tuple(sorted(entries, key=lambda entry: entry.path))
        by_path = {entry.path: entry for entry in ordered}
        if len(by_path) != len(ordered):
            counts = Counter(entry.path for entry in ordered)
            twice = [path for path, count in counts.items() if count > 1]
            raise MetadataError(f"the manifest lists {twice} more than once")
        for entry in ordered:
            if not is_relative_path(entry.path):
                raise MetadataError(f"the manifest lists {entry.path!r}, which is no relative path")
            if entry.size < 0:
                raise MetadataError(f"the manifest gives {entry.path!r} the size {entry.size}")
        object.__setattr__(self, "entries", ordered)
        object.__setattr__(self, "format_version", format_version)
        object.__setattr__(self, "extra", {} if extra is None else extra)
        object.__setattr__(self, "by_path", by_path)

    @property
    def total_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(entry.size for entry in self.entries)

    def to_bytes(self) -> bytes:
        """Encodes as JSON lines: a header that counts, then a line per file."""
        header = {
            "format_version": self.format_version,
            "files": len(self.entries),
            "bytes": self.total_bytes,
        }
        lines = [canonical_json(merge_extra(header, self.extra))]
        lines += [
            canonical_json(
                merge_extra({"path": e.path, "size": e.size, "digest": e.digest}, e.extra)
            )
            for e in self.entries
        ]
        return b"\n".join(lines) + b"\n"

    def digest(self) -> str:
        """The digest that the commit record carries: that of `to_bytes()`."""
        return digest_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = MANIFEST_FILE) -> Manifest:
        """Decodes strictly.

        Raises:
            MetadataError: A line is damaged, or lines are missing.
            NewerFormatError: Written by a newer holdfast.
        """
        lines = data.split(b"\n")
        header = Fields.parse(lines[0], source=f"{source}, line 1")
        version = header.version(FORMAT_VERSION)
        files, total = header.take("files", int), header.take("bytes", int)
        if lines[-1] != b"" or len(lines) != files + 2:
            found = data.count(b"\n") - 1
            raise MetadataError(
                f"{source} is cut off or was added to: {files} files announced, {found} listed"
            )
        entries = [
            _entry(line, f"{source}, line {number}") for number, line in enumerate(lines[1:-1], 2)
        ]
        try:
            manifest = cls(entries, version, header.rest)
        except MetadataError as error:
            raise MetadataError(f"{source}: {error}") from error
        if manifest.total_bytes != total:
            raise MetadataError(
                f"{source}: the sizes add up to {manifest.total_bytes} bytes, not {total}"
            )
        return manifest


def _entry(line: bytes, source: str) -> ManifestEntry:
    fields = Fields.parse(line, source=source)
    return ManifestEntry(
        path=fields.take("path", str),
        size=fields.take("size", int),
        digest=fields.take("digest", str, None),
        extra=fields.rest,
    )
