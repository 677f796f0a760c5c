"""`_MANIFEST.jsonl`: every file of a checkpoint with its size and, where known, digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast_metadata.digest import digest_bytes
from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields
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
    """

    path: str
    size: int
    digest: str | None = None


class Manifest:
    """The files of one attempt, sorted by path.

    Raises:
        MetadataError: A path is listed twice or is no relative path, or a size is negative.

    Example:
        >>> Manifest([ManifestEntry("b", 1), ManifestEntry("a", 2)]).total_bytes
        3
    """

    __slots__ = ("by_path", "entries")

    def __init__(self, entries: Iterable[ManifestEntry], *, source: str = MANIFEST_FILE) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.path))
        self.by_path: Mapping[str, ManifestEntry] = {e.path: e for e in self.entries}
        if len(self.by_path) != len(self.entries):
            paths = [entry.path for entry in self.entries]
            twice = sorted({path for path in paths if paths.count(path) > 1})
            raise MetadataError(f"{source} lists {twice} more than once")
        for entry in self.entries:
            if any(part in ("", ".", "..") for part in entry.path.split("/")):
                raise MetadataError(f"{source} lists {entry.path!r}, which is no relative path")
            if entry.size < 0:
                raise MetadataError(f"{source} gives {entry.path!r} the size {entry.size}")

    @property
    def total_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(entry.size for entry in self.entries)

    def to_bytes(self) -> bytes:
        """Encodes as JSON lines: a header that counts, then a line per file."""
        header = {
            "format_version": FORMAT_VERSION,
            "files": len(self.entries),
            "bytes": self.total_bytes,
        }
        lines = [canonical_json(header)]
        lines += [
            canonical_json({"path": e.path, "size": e.size, "digest": e.digest})
            for e in self.entries
        ]
        return b"\n".join(lines) + b"\n"

    def digest(self) -> str:
        """The digest that the commit record carries."""
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
        header.version(FORMAT_VERSION)
        files, total = header.take("files", int), header.take("bytes", int)
        if lines[-1] != b"" or len(lines) != files + 2:
            raise MetadataError(f"{source} is cut off: {files} files expected")
        manifest = cls(
            (
                _entry(line, f"{source}, line {number}")
                for number, line in enumerate(lines[1:-1], 2)
            ),
            source=source,
        )
        if manifest.total_bytes != total:
            raise MetadataError(
                f"{source}: its sizes add up to {manifest.total_bytes}, not {total}"
            )
        return manifest


def _entry(line: bytes, source: str) -> ManifestEntry:
    fields = Fields.parse(line, source=source)
    return ManifestEntry(
        path=fields.take("path", str),
        size=fields.take("size", int),
        digest=fields.take("digest", str, None, default=None),
    )
