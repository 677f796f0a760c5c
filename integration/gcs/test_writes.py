"""Puts, large uploads and renames whose replies are lost, late or partial."""

import json
import re

import pytest

from holdfast_storage import errors
from holdfast_storage.testing.backend_tests import keys_below
from holdfast_storage.values import IfAbsent, IfVersion


@pytest.fixture
def large(monkeypatch):
    """Bytes of four chunks, the last one short."""
    monkeypatch.setattr("holdfast_gcs.uploads.ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr("holdfast_gcs.uploads.CHUNK_BYTES", 1 << 20)
    return bytes(range(256)) * (14 << 10)


@pytest.mark.parametrize("action", ["drop_after", "status", "drop"])
@pytest.mark.parametrize("swap", [False, True], ids=["create", "swap"])
async def test_a_conditional_put_whose_reply_is_lost_is_a_success(
    flat, proxied, opened, action, swap
):
    backend = opened(flat, endpoint_url=proxied.url)
    condition = IfVersion(await backend.put("k", b"old")) if swap else IfAbsent()
    rule = proxied.add(action, "POST")
    version = await backend.put("k", b"new", condition=condition)
    assert rule._done == 1
    assert (await backend.stat("k")).version == version
    assert await backend.get("k") == b"new"


async def test_equal_bytes_of_another_writer_are_not_taken_for_ours(flat, proxied, opened):
    backend = opened(flat, endpoint_url=proxied.url)
    await opened(flat).put("k", b"same", condition=IfAbsent())
    proxied.add("status", "POST", status=500)
    with pytest.raises(errors.TransientStorageError, match="in between is not known"):
        await backend.put("k", b"same", condition=IfAbsent())


async def test_who_was_only_asked_to_wait_and_then_lost_is_told_so(flat, proxied, opened):
    backend = opened(flat, endpoint_url=proxied.url)
    await opened(flat).put("k", b"another's")
    proxied.add("status", "POST", status=429, headers={"Retry-After": "0"})
    with pytest.raises(errors.ObjectExistsError):
        await backend.put("k", b"mine", condition=IfAbsent())


@pytest.mark.parametrize("action", ["status", "drop", "drop_after"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
async def test_a_fault_at_any_request_of_a_large_upload_costs_nothing(
    action, nth, flat, uploads_proxied, opened, large
):
    backend = opened(flat)
    rule = uploads_proxied.add(action, "upload", nth=nth)
    version = await backend.put("big", large, condition=IfAbsent())
    assert rule._done == 1
    assert await backend.get("big") == large
    assert (await backend.stat("big")).version == version
    with pytest.raises(errors.ObjectExistsError):
        await backend.put("big", large, condition=IfAbsent())


async def test_an_upload_that_the_service_forgot_starts_again(flat, uploads_proxied, opened, large):
    backend = opened(flat)
    for status, nth in ((404, 2), (410, 6)):
        uploads_proxied.add("status", "upload_id", nth=nth, status=status)
    await backend.put("big", large)
    assert await backend.get("big") == large
    assert sum(line.startswith("POST") for line in uploads_proxied.requests) == 3


async def test_a_service_that_keeps_half_of_a_chunk_is_sent_the_rest(
    gcs, flat, opened, large, monkeypatch
):
    keep, sent = gcs._continue, []

    def keep_half(request, body):
        sent.append(int(re.findall(r"\d+", request.headers["Content-Range"])[0]))
        return keep(request, body[: 1 << 19])

    monkeypatch.setattr(gcs, "_continue", keep_half)
    backend = opened(flat)
    await backend.put("big", large)
    assert await backend.get("big") == large
    assert sent == [half << 19 for half in range(7)]


async def test_an_upload_that_fails_for_good_leaves_nothing(flat, uploads_proxied, opened, large):
    backend = opened(flat, max_attempts=2)
    for nth in (3, 6):
        uploads_proxied.add("status", "upload_id", nth=nth)
    with pytest.raises(errors.TransientStorageError):
        await backend.put("big", large)
    assert await keys_below(backend, "") == []
    assert await backend.abort_uploads("", older_than=0) == 0


async def test_a_rename_that_may_not_be_polled_is_looked_at(hierarchical, proxied, opened):
    body = json.dumps({"error": {"message": "needs storage.bucketOperations.get"}})
    rule = proxied.add("status", "GET .*/operations/", times=0, status=403, body=body)
    backend = opened(hierarchical, endpoint_url=proxied.url)
    await backend.put("a/x", b"1")
    await backend.rename_prefix("a", "b")
    assert rule._done
    assert await keys_below(backend, "") == ["b/x"]


async def test_a_rename_that_may_not_be_made_moves_nothing(gcs, hierarchical, opened):
    backend = opened(hierarchical)
    await backend.put("a/x", b"1")
    gcs.denied = {"storage.folders.rename"}
    with pytest.raises(errors.StoragePermissionError, match=r"storage\.folders\.rename"):
        await backend.rename_prefix("a", "b")
    assert await keys_below(backend, "") == ["a/x"]


@pytest.mark.parametrize("onto", ["refuse", "merge", "replace"])
async def test_a_rename_never_lands_on_something(onto, gcs, hierarchical, opened):
    gcs.onto_existing = onto
    backend = opened(hierarchical)
    for key in ("a/x", "full/deep/y", "object", "empty/deep/z"):
        await backend.put(key, b"1")
    await backend.delete("empty/deep/z")
    for taken in ("full", "object"):
        with pytest.raises(errors.ObjectExistsError):
            await backend.rename_prefix("a", taken)
    await backend.rename_prefix("a", "empty")
    assert sorted(await keys_below(backend, "")) == ["empty/x", "full/deep/y", "object"]
    with pytest.raises(errors.ObjectNotFoundError):
        await backend.rename_prefix("a", "b")


async def test_emptied_folders_are_not_shown_and_go_with_their_prefix(gcs, hierarchical, opened):
    backend = opened(hierarchical)
    folders = gcs.buckets[hierarchical].folders
    for key in ("a/b/c/x", "ab/y"):
        await backend.put(key, b"1")
    await backend.delete("a/b/c/x")
    assert "run/a/b/c/" in folders
    assert (await backend.children("")).prefixes == ("ab",)
    await backend.delete_prefix("a")
    assert folders == {"run/", "run/ab/"}
    await backend.delete_prefix("a")
