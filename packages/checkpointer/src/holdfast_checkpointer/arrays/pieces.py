"""Which chunks a read touches, each once, and what every wanted part takes from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast_checkpointer.arrays import plan

_log = logging.getLogger(__name__)
_NOTED = 1.1
_WARNED = 64 << 20


@dataclass(frozen=True)
class Piece:
    """One chunk to read.

    Attributes:
        index: The chunk's.
        region: Its in-bounds region.
        takers: For each part that needs some of it: the part's position, and which region of
            the array it takes.
    """

    index: plan.Shape
    region: plan.Region
    takers: list[tuple[int, plan.Region]] = field(default_factory=list)

    @property
    def wanted(self) -> plan.Region:
        """The smallest region that has all that is taken."""
        regions = [region for _, region in self.takers]
        return tuple(
            slice(min(part.start for part in axis), max(part.stop for part in axis))
            for axis in zip(*regions, strict=True)
        )


def pieces_of(shape: plan.Shape, chunk: plan.Shape, regions: Sequence[plan.Region]) -> list[Piece]:
    """The chunks that the regions touch. One that several touch is read once."""
    found: dict[plan.Shape, Piece] = {}
    for position, region in enumerate(regions):
        if 0 in plan.extent(region):
            continue
        for index, part in plan.chunks_of(shape, chunk, region):
            piece = found.get(index)
            if piece is None:
                piece = found[index] = Piece(index, part)
            piece.takers.append((position, plan.intersection(part, region)))
    return list(found.values())


class OverRead:
    """What is read besides what is wanted, because a chunk is read and verified whole."""

    def __init__(self) -> None:
        self._read = self._wanted = 0
        self._leaves: list[tuple[float, str, plan.Shape]] = []

    def note(self, leaf: str, chunk: plan.Shape, pieces: Sequence[Piece], itemsize: int) -> None:
        """Counts the pieces of one array."""
        read = sum(_elements(piece.region) for piece in pieces) * itemsize
        wanted = sum(_elements(r) for piece in pieces for _, r in piece.takers) * itemsize
        self._read += read
        self._wanted += wanted
        if read > _NOTED * wanted:
            self._leaves.append((read / wanted, leaf, chunk))

    def report(self) -> None:
        """Logs it once, if it is more than a tenth for any array."""
        if not self._leaves:
            return
        worst, leaf, chunk = max(self._leaves)
        much = self._read - self._wanted > _WARNED and self._read > 2 * self._wanted
        _log.log(
            logging.WARNING if much else logging.INFO,
            "%d bytes are read for the %d that are wanted: the chunks of %d arrays are not cut "
            "like the parts that are wanted, most of all those of %s, %s, of which %.1f times as "
            "much is read. StorageOptions(shard_axes=..., chunk_byte_size=...) at the save says "
            "how to cut them",
            self._read,
            self._wanted,
            len(self._leaves),
            leaf,
            list(chunk),
            worst,
        )


def _elements(region: plan.Region) -> int:
    return math.prod(plan.extent(region))
