"""Items made of several: each part in a folder of its own, all in the one attempt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.handlers.base import ItemRecord, StagedItem
from holdfast_storage import WriteArea


@dataclass(frozen=True)
class StagedParts(StagedItem):
    """Staged items by folder, written at once."""

    parts: Mapping[str, StagedItem]

    @property
    def calls(self) -> int:
        """See `StagedItem.calls`."""
        return sum(part.calls for part in self.parts.values())

    @property
    def shared(self) -> bool:
        """See `StagedItem.shared`."""
        return any(part.shared for part in self.parts.values())

    def for_follower(self) -> StagedParts | None:
        """See `StagedItem.for_follower`."""
        found = {name: part.for_follower() for name, part in self.parts.items()}
        mine = {name: part for name, part in found.items() if part is not None}
        return StagedParts(mine) if mine else None

    def fingerprint(self) -> Mapping[str, str]:
        """See `StagedItem.fingerprint`."""
        return {
            f"/{name}{leaf}": said
            for name, part in self.parts.items()
            for leaf, said in part.fingerprint().items()
        }

    def encode(self, record: ItemRecord) -> bytes:
        """See `StagedItem.encode`."""
        parts = {n: self.parts[n].encode(part).hex() for n, part in record.detail.items()}
        return json.dumps(parts).encode()

    def decode(self, data: bytes) -> ItemRecord:
        """See `StagedItem.decode`."""
        said = json.loads(data)
        return ItemRecord(
            None, {n: self.parts[n].decode(bytes.fromhex(part)) for n, part in said.items()}
        )

    @property
    def complete(self) -> bool:
        """See `StagedItem.complete`."""
        return all(part.complete for part in self.parts.values())

    async def write(self, area: WriteArea) -> ItemRecord:
        """See `StagedItem.write`."""
        records = await run_all(part.write(area.child(name)) for name, part in self.parts.items())
        reasons = [record.orbax_unreadable for record in records if record.orbax_unreadable]
        return ItemRecord(
            reasons[0] if reasons else None, dict(zip(self.parts, records, strict=True))
        )

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """See `StagedItem.finish`."""
        await run_all(
            part.finish(
                area.child(name), [each.detail[name] for each in records if name in each.detail]
            )
            for name, part in self.parts.items()
        )

    async def discard(self) -> None:
        """See `StagedItem.discard`."""
        for part in self.parts.values():
            await part.discard()
