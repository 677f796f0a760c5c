"""What each reply means to the caller, and that a reply which makes no sense means nothing."""

import asyncio
import base64
import json
import socket

import pytest

from holdfast_storage import errors
from holdfast_storage.commit import read_record
from holdfast_storage.values import ByteRange, IfAbsent, IfVersion
from integration.servers.processes import free_port

LARGE = 9 << 20


async def test_each_operation_is_one_request(gcs, flat, opened):
    backend = opened(flat)
    version = await backend.put("k", b"0123456789", condition=IfAbsent())
    calls = (
        lambda: backend.put("k", b"0123456789", condition=IfVersion(version)),
        lambda: backend.get("k"),
        lambda: backend.get("k", byte_range=ByteRange(2, 5)),
        lambda: backend.read("k"),
        lambda: backend.stat("k"),
        lambda: backend.children(""),
        lambda: backend.delete("k"),
    )
    for call in calls:
        before = len(gcs.requests)
        await call()
        assert len(gcs.requests) == before + 1, gcs.requests[before:]


async def test_each_event_loop_has_its_own_session_and_can_let_it_go(flat, opened):
    backend = opened(flat)
    await backend.put("k", b"1")

    async def from_a_thread():
        assert await backend.get("k") == b"1"
        await backend.release()

    for _ in range(3):
        await asyncio.to_thread(asyncio.run, from_a_thread())
    assert await backend.get("k") == b"1"
    assert len(backend._session._systems._made) == 1


async def test_every_call_tells_a_missing_bucket_from_a_missing_object(opened):
    backend = opened("no-such-bucket", hns=False)
    calls = (
        backend.get("k"), backend.stat("k"), backend.put("k", b""), backend.delete("k"),
        backend.children(""), backend.put("k", b"x" * LARGE), read_record(backend, "7"),
        opened("no-such-bucket").commit_strategy(),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(errors.StorageError, match="'no-such-bucket' does not exist") as caught:
            await call
        assert not isinstance(caught.value, FileNotFoundError)
        assert "endpoint=http://127.0.0.1" in str(caught.value)


async def test_a_refused_replacement_leaves_the_object(gcs, flat, opened):
    backend = opened(flat)
    await backend.put("k", b"1")
    gcs.denied = {"storage.objects.delete"}
    with pytest.raises(errors.StoragePermissionError, match=r"storage\.objects\.delete"):
        await backend.put("k", b"2")
    assert await backend.get("k") == b"1"


async def test_a_refusal_never_counts_as_absence(gcs, flat, opened):
    gcs.denied = {"storage.objects.get"}
    with pytest.raises(errors.RecordUnreadableError, match=r"storage\.objects\.get"):
        await read_record(opened(flat), "7")


async def test_nobody_listening_is_told_with_the_endpoint(opened):
    endpoint = f"http://127.0.0.1:{free_port()}"
    backend = opened("bucket", endpoint_url=endpoint, max_attempts=2)
    with pytest.raises(errors.TransientStorageError, match=endpoint):
        await backend.get("k")


async def test_a_server_that_never_answers_meets_a_deadline(opened):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        backend = opened("bucket", endpoint_url=endpoint, timeout_s=0.5)
        with pytest.raises(errors.StorageTimeoutError, match="read an object"):
            await backend.get("k")


NOT_GCS = {
    "a page": (200, b"<html><p>Hi</p></html>"),
    "other JSON": (200, b'{"hello": "world"}'),
    "a list": (200, b"[]"),
    "no such page": (404, b"<html>404</html>"),
    "elsewhere": (302, b""),
}


@pytest.mark.parametrize("name", NOT_GCS)
async def test_what_is_not_gcs_is_not_taken_for_an_empty_bucket(name, opened, answering):
    endpoint = answering(*NOT_GCS[name])
    backend = opened("bucket", endpoint_url=endpoint, max_attempts=2, hns=False)
    calls = (
        backend.get("k"), backend.stat("k"), backend.children(""), backend.put("k", b""),
        backend.put("k", b"x" * LARGE),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(errors.StorageError, match="is the endpoint right") as caught:
            await call
        assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_service_without_storage_layouts_has_flat_buckets(
    status, flat, proxied, opened, caplog
):
    proxied.add("status", "storageLayout", times=0, status=status, body="404 page not found")
    backend = opened(flat, endpoint_url=proxied.url)
    for _ in range(2):
        await backend.commit_strategy()
    assert caplog.text.count("this service has no storage layout") == 1
    assert not backend.capabilities.rename_prefix
    assert len(proxied.requests) == 1


async def test_the_paying_project_is_named_in_every_request_that_takes_it(gcs, flat, opened):
    backend = opened(flat, requester_pays="payer")
    await backend.put("k", b"1")
    await backend.put("big", b"x" * LARGE)
    assert len(await backend.get("big")) == LARGE
    await backend.delete_prefix("")
    told = ["userProject=payer" in line for line in gcs.requests if "upload_id" not in line]
    assert len(told) > 5
    assert all(told)


async def test_a_payer_that_is_missing_is_told_what_to_set(opened, answering):
    said = "Bucket is a requester pays bucket but no user project provided."
    endpoint = answering(400, json.dumps({"error": {"code": 400, "message": said}}).encode())
    with pytest.raises(errors.StorageError, match="set requester_pays to the project"):
        await opened("bucket", endpoint_url=endpoint).get("k")


async def test_bytes_that_are_not_the_object_s_are_never_returned(opened, answering):
    digest = base64.b64encode(b"0" * 16).decode()
    headers = [
        ("x-goog-generation", "1"),
        ("x-goog-hash", f"crc32c=AAAAAA==,md5={digest}"),
        ("Last-Modified", "Tue, 24 Nov 2026 08:00:00 GMT"),
    ]
    endpoint = answering(200, b"flipped", headers)
    with pytest.raises(errors.TransientStorageError, match="not the object's"):
        await opened("bucket", endpoint_url=endpoint, max_attempts=2).get("k")


@pytest.mark.parametrize("action", ["truncate", "drop", "drop_after", "status"])
async def test_a_read_that_is_cut_is_read_again(action, flat, proxied, opened):
    data = bytes(range(256)) * 4096
    backend = opened(flat, endpoint_url=proxied.url)
    await backend.put("k", data)
    whole = proxied.add(action, "GET", times=2)
    assert await backend.get("k") == data
    part = proxied.add(action, "GET")
    assert await backend.get("k", byte_range=ByteRange(7, 70007)) == data[7:70007]
    assert (whole._done, part._done) == (2, 1)
