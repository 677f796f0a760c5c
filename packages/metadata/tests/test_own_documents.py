"""The record, the mark of an attempt, the manifest and the digests."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_metadata import (
    ArrayDigests,
    AttemptMark,
    ChunkDigests,
    Collecting,
    CommitRecord,
    HoldfastError,
    Manifest,
    ManifestEntry,
    MetadataError,
    NewerFormatError,
    Pin,
    QuarantineMark,
    ReaderLease,
    Trashed,
    TrashTicket,
    canonical_json,
    digest_bytes,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SIZE = st.integers(0, 2**63)
EXTRA = st.dictionaries(TEXT.map("x-{}".format), st.integers() | TEXT | st.lists(TEXT), max_size=2)
SEGMENT = TEXT.map(lambda text: "_" + text.replace("/", ""))
PATH = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)
RECORDS = st.builds(
    CommitRecord,
    state=st.sampled_from(["committed", "retired", "trashed", "none"]),
    attempt=TEXT.filter(bool),
    data=st.just("") | PATH,
    manifest_digest=st.none() | TEXT,
    committed_ns=st.none() | st.integers(),
    dead=st.lists(TEXT).map(tuple),
    kind=TEXT,
    trashed=st.lists(
        st.builds(
            Trashed,
            attempt=TEXT,
            data=st.just("") | PATH,
            manifest_digest=st.none() | TEXT,
            committed_ns=st.none() | st.integers(),
        )
    ).map(tuple),
    orbax_until_ns=st.none() | st.integers(),
    extra=EXTRA,
)
MARKS = st.builds(
    AttemptMark,
    **dict.fromkeys(("attempt", "kind", "host", "boot_id", "pid_namespace", "process_start"), TEXT),
    **dict.fromkeys(("pid", "created_ns", "beat"), st.integers()),
    ttl_s=st.floats(0, 1e9) | st.integers(0, 10**9),
    extra=EXTRA,
)
TICKETS = st.builds(TrashTicket, final=PATH, attempt=st.none() | TEXT, by=MARKS, extra=EXTRA)
ENTRIES = st.builds(ManifestEntry, path=PATH, size=SIZE, digest=st.none() | TEXT, extra=EXTRA)
MANIFESTS = st.builds(Manifest, st.lists(ENTRIES, unique_by=lambda entry: entry.path), extra=EXTRA)
RANKED = st.integers(0, 4).flatmap(
    lambda rank: st.builds(
        ArrayDigests,
        dtype=TEXT,
        **dict.fromkeys(
            ("shape", "chunk_shape"), st.lists(SIZE, min_size=rank, max_size=rank).map(tuple)
        ),
        digests=st.dictionaries(TEXT, TEXT),
    )
)
DIGESTS = st.builds(ChunkDigests, arrays=st.dictionaries(TEXT, RANKED), extra=EXTRA)
DOCUMENTS = RECORDS | MARKS | DIGESTS | TICKETS

RECORD = CommitRecord("committed", "a1", "attempt-a1", "xxh3_64:0", 5, ("b2",))
MARK = AttemptMark("a1", "save", "box", "boot", "ns", 7, "99", 3600.0, 5, 2)
CHUNKS = ChunkDigests({"w": ArrayDigests("int8", (3,), (2,), {"0": "d0", "1": "d1"})})


@given(DOCUMENTS | MANIFESTS)
def test_every_document_comes_back_equal_and_in_the_same_bytes(document):
    data = document.to_bytes()
    found = type(document).from_bytes(data)
    assert found == document
    assert found.to_bytes() == data


@given(DOCUMENTS)
def test_every_document_is_canonical_json(document):
    data = document.to_bytes()
    assert canonical_json(json.loads(data)) == data


def test_documents_look_like_this():
    assert RECORD.to_bytes() == (
        b'{"attempt":"a1","committed_ns":5,"data":"attempt-a1","dead":["b2"],"format_version":1,'
        b'"kind":"checkpoint","manifest_digest":"xxh3_64:0","state":"committed"}'
    )
    assert MARK.to_bytes() == (
        b'{"attempt":"a1","beat":2,"boot_id":"boot","created_ns":5,"format_version":1,'
        b'"host":"box","kind":"save","pid":7,"pid_namespace":"ns","process_start":"99",'
        b'"ttl_s":3600.0}'
    )
    assert CHUNKS.to_bytes() == (
        b'{"arrays":{"w":["int8",[3],[2],{"0":"d0","1":"d1"}]},"format_version":1}'
    )
    assert Manifest([ManifestEntry("b", 1), ManifestEntry("a/\u00fc", 2, "d")]).to_bytes() == (
        b'{"bytes":3,"files":2,"format_version":1}\n'
        b'{"digest":"d","path":"a/\\u00fc","size":2}\n'
        b'{"digest":null,"path":"b","size":1}\n'
    )


@pytest.mark.parametrize("document", [RECORD, MARK, CHUNKS], ids=lambda d: type(d).__name__)
class TestEveryDocument:
    def stored(self, document):
        return json.loads(document.to_bytes())

    def test_unknown_fields_are_kept_and_written_back(self, document):
        stored = self.stored(document) | {"zz": {"a": [1]}}
        found = type(document).from_bytes(canonical_json(stored))
        assert found.extra == {"zz": {"a": [1]}}
        assert dataclasses.replace(found, extra={}) == document
        assert found.to_bytes() == canonical_json(stored)

    def test_a_newer_format_is_refused_and_says_so(self, document):
        data = canonical_json(self.stored(document) | {"format_version": 2})
        with pytest.raises(NewerFormatError) as caught:
            type(document).from_bytes(data, source="gs://b/run/7/_X")
        assert str(caught.value) == (
            "gs://b/run/7/_X has format version 2; this holdfast reads up to 1. "
            "Install a newer holdfast to read it."
        )
        assert isinstance(caught.value, MetadataError)
        assert isinstance(caught.value, HoldfastError)
        assert isinstance(caught.value, ValueError)

    def test_a_newer_format_may_lack_and_change_any_other_field(self, document):
        with pytest.raises(NewerFormatError):
            type(document).from_bytes(b'{"format_version":3,"state":"afloat","arrays":5}')

    @pytest.mark.parametrize("version", [0, -1])
    def test_versions_begin_at_one(self, document, version):
        data = canonical_json(self.stored(document) | {"format_version": version})
        with pytest.raises(MetadataError, match="format_version must be at least 1, found"):
            type(document).from_bytes(data)

    def test_a_missing_field_is_named(self, document):
        optional = {"kind"} if isinstance(document, CommitRecord) else set()
        for name in self.stored(document).keys() - optional:
            stored = self.stored(document)
            del stored[name]
            with pytest.raises(MetadataError, match=f"^here lacks the field '{name}'$"):
                type(document).from_bytes(canonical_json(stored), source="here")

    def test_a_field_of_another_type_is_named(self, document):
        for name in self.stored(document):
            data = canonical_json(self.stored(document) | {name: [[True]]})
            with pytest.raises(MetadataError, match=f"^here: '{name}' must "):
                type(document).from_bytes(data, source="here")

    @pytest.mark.parametrize("data", [b"", b"null", b"[]", b'"x"', b"{", b"{}{}"])
    def test_what_is_no_object_is_refused(self, document, data):
        with pytest.raises(MetadataError, match="^here (is not valid JSON|must be a JSON object)"):
            type(document).from_bytes(data, source="here")


def test_only_a_committed_record_makes_a_checkpoint_visible():
    states = {state: CommitRecord(state, "a").committed for state in ("retired", "trashed", "none")}
    assert not any(states.values())
    assert CommitRecord("committed", "a").committed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "afloat"}, "'state' must be one of committed, retired, trashed, none, found 'a"),
        ({"committed_ns": 1.5}, "'committed_ns' must be int or null, found float 1.5"),
        ({"committed_ns": True}, "'committed_ns' must be int or null, found bool True"),
        ({"trashed": [1]}, "'trashed' must hold dict, found int 1"),
        ({"trashed": [{}]}, "an element of 'trashed' lacks the field 'attempt'"),
        (
            {"trashed": [Trashed("a1", "../b").to_json()]},
            "'data' is '../b', which is no relative path",
        ),
        ({"dead": [1]}, "'dead' must hold str, found int 1"),
        ({"attempt": None}, "is committed and names no attempt"),
        ({"attempt": ""}, "is committed and names no attempt"),
        *(
            ({"data": path}, f"'data' is {path!r}, which is no relative path")
            for path in ("/etc", "..", "a/../../b", "a//b", "a/", ".")
        ),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(change, message):
    data = canonical_json(json.loads(RECORD.to_bytes()) | change)
    with pytest.raises(MetadataError) as caught:
        CommitRecord.from_bytes(data, source="_COMMIT.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("_COMMIT.json")


def test_a_fencing_record_needs_no_attempt():
    record = CommitRecord("none", dead=("a1",))
    assert CommitRecord.from_bytes(record.to_bytes()) == record


def test_a_manifest_is_sorted_and_found_by_path():
    manifest = Manifest(ManifestEntry(path, 1) for path in ("b", "a/b", "a", "Z"))
    assert [entry.path for entry in manifest.entries] == ["Z", "a", "a/b", "b"]
    assert manifest.by_path["a/b"].size == 1
    assert manifest.total_bytes == 4


@given(MANIFESTS)
def test_the_digest_of_a_manifest_is_that_of_its_bytes(manifest):
    assert manifest.digest() == digest_bytes(manifest.to_bytes())


@given(MANIFESTS, st.data())
def test_a_manifest_cut_off_anywhere_is_refused(manifest, data):
    whole = manifest.to_bytes()
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(MetadataError):
        Manifest.from_bytes(part)


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "./a", "a/..", "..", "."])
def test_a_manifest_lists_relative_paths_only(path):
    with pytest.raises(MetadataError, match="lists .*, which is no relative path"):
        Manifest([ManifestEntry(path, 1)])


def test_a_manifest_lists_a_path_once():
    entries = [ManifestEntry("a", 1), ManifestEntry("b", 1), ManifestEntry("a", 2)]
    with pytest.raises(MetadataError, match=r"lists \['a'\] more than once"):
        Manifest(entries)


HEADER = b'{"bytes":3,"files":1,"format_version":1}\n'
LINE = b'{"digest":null,"path":"a","size":3}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER, "m is cut off or was added to: 1 files announced, 0 listed"),
        (HEADER + LINE + LINE, "m is cut off or was added to: 1 files announced, 2 listed"),
        (HEADER + LINE[:-1], "m is cut off or was added to"),
        (HEADER + LINE + b"\n", "m is cut off or was added to"),
        (HEADER + LINE.replace(b"3", b"4"), "m: the sizes add up to 4 bytes, not 3"),
        (HEADER + LINE.replace(b"3", b"-3"), "m: the manifest gives 'a' the size -3"),
        (HEADER + LINE.replace(b"3", b"3.0"), "m, line 2: 'size' must be int, found float 3.0"),
        (HEADER + LINE.replace(b'"a"', b'"../a"'), "m: the manifest lists '../a', which is no"),
        (HEADER + LINE.replace(b'"path"', b'"p"'), "m, line 2 lacks the field 'path'"),
        (HEADER + LINE.replace(b"null", b"7"), "m, line 2: 'digest' must be str or null, found"),
        (HEADER + b"x" + LINE, "m, line 2 is not valid JSON"),
        (HEADER.replace(b"1}", b"2}") + LINE, "m, line 1 has format version 2; this holdfast"),
        (b"", "m, line 1 is not valid JSON"),
        (b"[]\n", "m, line 1 must be a JSON object, found list []"),
    ],
)
def test_a_damaged_manifest_is_refused_with_the_line(data, message):
    with pytest.raises(MetadataError) as caught:
        Manifest.from_bytes(data, source="m")
    assert str(caught.value).startswith(message)


def test_unknown_fields_of_a_manifest_are_kept_so_that_its_digest_stays():
    data = HEADER[:-2] + b',"zone":"x"}\n' + LINE[:-2] + b',"tier":1}\n'
    manifest = Manifest.from_bytes(data)
    assert manifest.by_path["a"].extra == {"tier": 1}
    assert manifest.to_bytes() == data
    assert manifest.digest() == digest_bytes(data)


def test_entries_and_manifests_are_values():
    one, other = ManifestEntry("a", 1, extra={"x": 1}), ManifestEntry("a", 1, extra={"x": 1})
    assert len({one, other, ManifestEntry("a", 2)}) == 2
    assert len({Manifest([one]), Manifest([other])}) == 1


@pytest.mark.parametrize(
    "stored",
    [
        None,
        ["int8", [3], [2]],
        {"dtype": "int8"},
        [8, [3], [2], {}],
        ["int8", [3], [2, 2], {}],
        ["int8", [True], [2], {}],
        ["int8", [-1], [2], {}],
        ["int8", "3", "2", {}],
        ["int8", [3], [2], []],
        ["int8", [3], [2], {"0": None}],
    ],
)
def test_digests_of_an_array_that_make_no_sense_name_the_array(stored):
    data = canonical_json({"format_version": 1, "arrays": {"layers.0.w": stored}})
    with pytest.raises(MetadataError) as caught:
        ChunkDigests.from_bytes(data, source="_DIGESTS/process_0")
    assert str(caught.value).startswith(
        "_DIGESTS/process_0: the array 'layers.0.w' must be [dtype, shape, chunk shape, digests], "
    )


@pytest.mark.parametrize(
    "document",
    [
        Pin(step=7, name="paper", created_ns=3, extra={"later": 1}),
        Collecting(
            names=("7", "step_8"),
            by=AttemptMark("abc", "removal", "host", "boot", "ns", 1, "2", 3600.0, 3),
            extra={"later": [2]},
        ),
        ReaderLease(
            steps=(7, 2**40),
            by=AttemptMark("abc", "reader", "host", "boot", "ns", 1, "2", 120.0, 3, beat=4),
            extra={"later": [2]},
        ),
        QuarantineMark(
            attempt="abc",
            files="xxh3_64:0123456789abcdef",
            problem="damaged",
            error="DamagedCheckpointError",
            reason="a bit",
            file="state/_TREE.json",
            leaf="",
            by=AttemptMark("abc", "quarantine", "host", "boot", "ns", 1, "2", 3600.0, 3),
            extra={"later": [2]},
        ),
        QuarantineMark(
            attempt=None,
            files="xxh3_64:0123456789abcdef",
            problem="unreadable",
            error="RecordUnreadableError",
            reason="a bit",
            file="state/_TREE.json",
            leaf="",
            by=AttemptMark("abc", "quarantine", "host", "boot", "ns", 1, "2", 3600.0, 3),
            extra={"later": [2]},
        ),
    ],
    ids=["pin", "collecting", "reader", "quarantine", "unreadable"],
)
def test_what_lies_beside_the_steps_comes_back_as_it_was_written(document):
    kind = type(document)
    assert kind.from_bytes(document.to_bytes()) == document
    with pytest.raises(NewerFormatError):
        kind.from_bytes(dataclasses.replace(document, format_version=2).to_bytes())
    for damaged in (b"", b"[]", b"{}", b'{"format_version": 1}'):
        with pytest.raises(MetadataError):
            kind.from_bytes(damaged)
