"""One database of several: by reference where TensorStore can, else value by value."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import tensorstore as ts

from holdfast_checkpointer.arrays import failures, formats
from holdfast_storage import KvTarget


async def merge_databases(
    target: KvTarget, sources: Sequence[tuple[KvTarget, Mapping[str, str]]], *, label: str = ""
) -> None:
    """Makes a database at the target that holds the arrays of others which lie below it.

    The bytes of chunks stay where they are and are referred to; only the index is written.

    Args:
        target: Where the new database goes.
        sources: The others, each with the names of its arrays and their names in the new one.
        label: For messages.

    Raises:
        StorageError: What storage says.
    """
    with failures.writing(label, target):
        # One context: a reference is possible only within one opened store.
        context = formats.context_for(target)
        merged = await ts.KvStore.open(formats.database_spec(target, write=True), context=context)
        transaction = ts.Transaction(atomic=True)
        into = merged.with_transaction(transaction)
        for source, names in sources:
            spec = formats.database_spec(source, write=True)
            database = await ts.KvStore.open(spec, context=context)
            same = all(old == new for old, new in names.items())
            pairs = [("", "")] if same else [(f"{old}/", f"{new}/") for old, new in names.items()]
            await asyncio.gather(*(_copy(database / a, into / b) for a, b in pairs))
        await transaction.commit_async()


async def stored_keys(target: KvTarget, *, label: str = "") -> set[str]:
    """The keys in a database: of its index, no chunk is read.

    Raises:
        StorageError: What storage says.
    """
    with failures.writing(label, target):
        spec = formats.database_spec(target, write=False)
        database = await ts.KvStore.open(spec, context=formats.context_for(target))
        return {key.decode() for key in await database.list()}


async def _copy(source: ts.KvStore, target: ts.KvStore) -> None:
    try:
        await source.experimental_copy_range_to(target)
    except NotImplementedError:
        for key in await source.list():
            await target.write(key, (await source.read(key)).value)
