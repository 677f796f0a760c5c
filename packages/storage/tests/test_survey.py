"""Many folders at once: what each holds, and of which the record had to be read."""

import dataclasses

import pytest

from holdfast_metadata import CommitRecord
from holdfast_storage import errors
from holdfast_storage.commit import survey
from holdfast_storage.testing.faulty import FaultyBackend
from holdfast_storage.testing.tables import TableBackend

ID = "0" * 32
MANIFEST = "_MANIFEST.jsonl"


def record(state, **more):
    return CommitRecord(state=state, attempt=ID, committed_ns=5, **more).to_bytes()


CONTENTS = {
    "renamed": {"_COMMIT.json": record("committed"), MANIFEST: b""},
    "pointed": {"_COMMIT.json": record("committed"), f"attempt-{ID}/{MANIFEST}": b""},
    "tombstone": {"_COMMIT.json": record("retired")},
    "damaged": {"_COMMIT.json": b"{"},
    "attempt": {f"attempt-{ID}/x": b""},
    "orbax": {"_CHECKPOINT_METADATA": b"{}", "default/_METADATA": b"{}"},
    "fenced-orbax": {"_CHECKPOINT_METADATA": b"{}", "_COMMIT.json": record("none", dead=(ID,))},
    "items": {"default/_METADATA": b"{}"},
    "half-removed": {MANIFEST: b"", "_CHECKPOINT_METADATA": b"{}", "state/_METADATA": b"{}"},
    "stray": {"readme.txt": b""},
}


async def filled(*, round_trips=False, by_file=False):
    table = TableBackend()
    table.hints = dataclasses.replace(table.hints, round_trips=round_trips)
    for name, files in CONTENTS.items():
        for path, data in files.items():
            await table.put(f"run/{name}/{path}", data)
    view = FaultyBackend(table, reads=True)
    view.orbax_commits_by_file = by_file
    return view


async def look(view, *more):
    return await survey(view, [f"run/{name}" for name in (*CONTENTS, *more)])


def records_read(view):
    return {call.key.split("/")[1] for call in view.calls if call.key.endswith("_COMMIT.json")}


async def test_each_folder_is_told_and_no_record_is_read_beside_its_manifest():
    view = await filled()
    found = await look(view, "nothing")
    assert found.likely == ("renamed",)
    assert [entry.name for entry in found.committed] == ["pointed"]
    assert [name for name, _ in found.unreadable] == ["damaged"]
    assert found.orbax == ("orbax", "fenced-orbax")
    assert found.foreign == ("items", "stray")
    assert "renamed" not in records_read(view)
    assert records_read(view) == {"pointed", "tombstone", "damaged", "fenced-orbax"}


async def test_where_hints_are_kept_every_record_is_read():
    found = await look(await filled(round_trips=True))
    assert found.likely == ()
    assert [entry.name for entry in found.committed] == ["renamed", "pointed"]


async def test_what_orbax_has_not_finished_is_nothing_where_a_file_says_that_it_is():
    view = await filled(by_file=True)
    await view.put("run/stray/commit_success.txt", b"")
    found = await look(view)
    assert (found.orbax, found.foreign) == ((), ("items", "stray"))
    await view.put("run/orbax/commit_success.txt", b"")
    assert (await look(view)).orbax == ("orbax",)


async def test_a_folder_that_may_not_be_listed_is_judged_by_its_record(monkeypatch):
    view = await filled()
    finals = ["run/renamed", "run/pointed"]
    listed = TableBackend.children

    async def children(self, prefix):
        if prefix in finals:
            raise errors.StoragePermissionError("403", key=prefix, root=self.root)
        return await listed(self, prefix)

    monkeypatch.setattr(TableBackend, "children", children)
    found = await survey(view, finals)
    assert [entry.name for entry in found.committed] == ["renamed", "pointed"]


@pytest.mark.parametrize("finals", [[], ["run/nothing"]])
async def test_nothing_is_found_where_nothing_is(finals):
    found = await survey(await filled(), finals)
    assert found == dataclasses.replace(
        found, likely=(), committed=(), unreadable=(), orbax=(), foreign=()
    )
