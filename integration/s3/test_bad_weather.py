"""What a user is told when something is wrong, and what is then true."""

import asyncio
import contextlib
import http.server
import socket
import threading

import pytest

from holdfast_s3 import S3Backend, probe
from holdfast_storage import errors
from holdfast_storage.commit import open_committed, read_record
from holdfast_storage.commit.pointer import PointerCommit
from holdfast_storage.testing.history import files_of
from holdfast_storage.values import IfAbsent, IfVersion
from integration.servers.processes import free_port


@pytest.fixture
async def opened():
    """Opens backends, and closes them after the test."""
    made = []

    def make(server, bucket, **options):
        made.append(S3Backend(f"s3://{bucket}/run", server.options | options))
        return made[-1]

    yield make
    for backend in made:
        await backend.aclose()


async def save(backend, final, label, *, replace=False):
    strategy = PointerCommit(backend, grace_s=0.0)
    txn = await strategy.begin(final)
    area = strategy.area(txn)
    for name, data in files_of(label).items():
        await area.put(name, data)
    return await strategy.commit(txn, await strategy.seal(txn, area), replace=replace)


# --- what is configured wrong ----------------------------------------------------------------


async def test_a_missing_bucket_is_no_absent_object(ministack, opened):
    backend = opened(ministack, "no-such-bucket")
    for call in (backend.get("k"), backend.put("k", b""), read_record(backend, "7")):
        with pytest.raises(errors.StorageError, match="'no-such-bucket' does not exist") as caught:
            await call
        assert not isinstance(caught.value, FileNotFoundError)
        assert "endpoint=http://127.0.0.1" in str(caught.value)
        assert ministack.secret not in str(caught.value)


@pytest.mark.parametrize("bucket", ["UPPER", "a", "under_score", "-dash", "dash-", "x" * 64])
def test_a_name_that_no_bucket_can_have_is_refused(bucket):
    with pytest.raises(errors.InvalidURLError, match="no name of an S3 bucket"):
        S3Backend(f"s3://{bucket}/run", {})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpont_url": "http://x"}, "unknown settings"),
        ({"endpoint_url": "ftp://x"}, "must be http"),
        ({"endpoint_url": "http://user:pw@x"}, "without credentials"),
        ({"key": "only"}, "given together"),
        ({"addressing_style": "sideways"}, "one of auto, path, virtual"),
        ({"s3_additional_kwargs": {"ServerSideEncryption": "AES256"}}, "defaults of the bucket"),
        ({"client_kwargs": {"verify": False}}, "always checks certificates"),
        ({"client_kwargs": {"proxies": {}}}, "reach s3fs and not the arrays"),
        ({"profile": "nobody"}, "nobody"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_before_any_request(options, told):
    with pytest.raises(errors.InvalidURLError, match=told) as caught:
        S3Backend("s3://bucket/run", options)
    assert "pw" not in str(caught.value)


async def test_nobody_listening_is_told_with_the_endpoint(opened, ministack):
    endpoint = f"http://127.0.0.1:{free_port()}"
    backend = opened(ministack, "bucket", endpoint_url=endpoint, max_attempts=2)
    with pytest.raises(errors.TransientStorageError, match=endpoint):
        await backend.get("k")


async def test_a_wrong_key_is_a_matter_of_permission(rclone, bucket_name, opened):
    rclone.make_bucket(bucket_name)
    backend = opened(rclone, bucket_name, key="WRONGKEY", secret="whatever")
    with pytest.raises(errors.StoragePermissionError, match=r"signed=by WRON…") as caught:
        await backend.put("k", b"")
    assert isinstance(caught.value, PermissionError)


@contextlib.contextmanager
def answering(status, body, headers=()):
    """A server that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def said(code, message):
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


ELSEWHERE = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
REFUSED = errors.StoragePermissionError
ANSWERS = {
    "no permission": (403, said("AccessDenied", "no"), REFUSED, "s3:GetObject"),
    "expired": (400, said("ExpiredToken", "old"), REFUSED, "session token"),
    "region": (400, ELSEWHERE, errors.StorageError, "set the region to eu-west-1"),
    "clock": (403, said("RequestTimeTooSkewed", "late"), errors.StorageError, "set the clock"),
    "not S3": (200, b"<html><p>Hi</p></html>", errors.StorageError, "is the endpoint right"),
    "full": (507, said("InsufficientStorage", "no"), errors.StorageFullError, "full"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_each_refusal_says_what_to_do(name, ministack, opened):
    status, body, kind, told = ANSWERS[name]
    with answering(status, body) as endpoint:
        backend = opened(ministack, "bucket", endpoint_url=endpoint, max_attempts=2)
        with pytest.raises(kind, match=told) as caught:
            await (backend.children("") if name == "not S3" else backend.get("k"))
        assert ministack.secret not in str(caught.value)


async def test_a_hint_of_missing_list_permission_never_counts_as_absence(ministack, opened):
    with answering(403, said("AccessDenied", "no")) as endpoint:
        backend = opened(ministack, "bucket", endpoint_url=endpoint)
        with pytest.raises(errors.RecordUnreadableError, match="s3:ListBucket"):
            await read_record(backend, "7")


async def test_a_server_that_never_answers_meets_a_deadline(ministack, opened):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        backend = opened(
            ministack, "bucket", endpoint_url=endpoint, timeout_s=2,
            config_kwargs={"read_timeout": 0.5},
        )  # fmt: skip
        with pytest.raises(errors.StorageTimeoutError, match="GetObject"):
            await backend.get("k")


# --- stores that ignore conditions -----------------------------------------------------------


async def test_a_store_that_ignores_conditions_is_refused_in_words(rclone, bucket_name, opened):
    rclone.make_bucket(bucket_name)
    backend = opened(rclone, bucket_name)
    with pytest.raises(errors.UnsupportedOperationError, match=r"If-None-Match: \* is ignored"):
        await backend.commit_strategy()
    assert [info async for info in backend.walk("")] == []


async def test_unsafe_commit_goes_on_and_still_sees_what_stands_there(
    rclone, bucket_name, opened, caplog
):
    rclone.make_bucket(bucket_name)
    backend = opened(rclone, bucket_name, unsafe_commit=True)
    await backend.commit_strategy()
    assert "unsafe_commit" in caplog.text
    version = await backend.put("k", b"1", condition=IfAbsent())
    with pytest.raises(errors.ObjectExistsError):
        await backend.put("k", b"2", condition=IfAbsent())
    await backend.put("k", b"3", condition=IfVersion(version))
    with pytest.raises(errors.PreconditionFailedError):
        await backend.put("k", b"4", condition=IfVersion(version))
    assert await backend.get("k") == b"3"


async def test_the_probe_asks_once_per_process_and_leaves_nothing(
    ministack, proxied, bucket_name, opened
):
    ministack.make_bucket(bucket_name)
    backend = opened(ministack, bucket_name, endpoint_url=proxied.url)
    await backend.commit_strategy()
    asked = len(proxied.requests)
    assert asked == 5
    await backend.commit_strategy()
    other = S3Backend(f"s3://{bucket_name}/elsewhere", backend_options(ministack, proxied))
    await other.commit_strategy()
    assert len(proxied.requests) == asked
    assert [info async for info in backend.walk("")] == []


def backend_options(server, proxy):
    return server.options | {"endpoint_url": proxy.url}


@pytest.mark.parametrize("second", [False, True], ids=["If-None-Match", "If-Match"])
async def test_a_store_that_ignores_one_condition_is_found_too(
    ministack, proxied, bucket_name, opened, second
):
    """The proxy answers 200 where the store would have said 412."""
    ministack.make_bucket(bucket_name)
    proxied.add("status", "PUT", nth=4 if second else 2, status=200, headers={"ETag": '"x"'})
    backend = opened(ministack, bucket_name, endpoint_url=proxied.url)
    with pytest.raises(errors.UnsupportedOperationError, match="If-Match" if second else "If-None"):
        await backend.commit_strategy()


# --- weather ---------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["drop_after", "status", "drop"])
@pytest.mark.parametrize("swap", [False, True])
async def test_a_conditional_put_whose_reply_is_lost_is_a_success(
    ministack, proxied, bucket_name, opened, action, swap
):
    ministack.make_bucket(bucket_name)
    backend = opened(ministack, bucket_name, endpoint_url=proxied.url)
    condition = IfVersion(await backend.put("k", b"old")) if swap else IfAbsent()
    proxied.clear()
    proxied.add(action, "PUT")
    version = await backend.put("k", b"new", condition=condition)
    assert (await backend.stat("k")).version == version
    assert await backend.get("k") == b"new"


async def test_a_lost_reply_and_another_winner_is_not_called_a_loss(
    ministack, proxied, bucket_name, opened
):
    ministack.make_bucket(bucket_name)
    backend = opened(ministack, bucket_name, endpoint_url=proxied.url)
    await opened(ministack, bucket_name).put("k", b"another's")
    proxied.add("status", "PUT", status=500)
    with pytest.raises(errors.TransientStorageError, match="in between is not known"):
        await backend.put("k", b"mine", condition=IfAbsent())
    assert await backend.get("k") == b"another's"


async def test_large_objects_go_in_parts_and_a_failure_leaves_none(
    ministack, proxied, bucket_name, opened, monkeypatch
):
    monkeypatch.setattr("holdfast_s3.backend._ONE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr("holdfast_s3.uploads.PART_BYTES", 5 << 20)
    ministack.make_bucket(bucket_name)
    backend = opened(ministack, bucket_name, endpoint_url=proxied.url, max_attempts=2)
    data = bytes(range(256)) * (12 << 12)
    version = await backend.put("big", data, condition=IfAbsent())
    assert await backend.get("big") == data
    assert (await backend.stat("big")).version == version
    with pytest.raises(errors.ObjectExistsError):
        await backend.put("big", data[:-1] + b"x", condition=IfAbsent())
    proxied.add("status", "PUT.*partNumber=2", times=0)
    with pytest.raises((errors.TransientStorageError, ExceptionGroup)):
        await backend.put("other", data)
    assert ministack.client().list_multipart_uploads(Bucket=bucket_name).get("Uploads", []) == []
    assert [info.key async for info in backend.walk("")] == ["big"]


async def test_a_sweep_aborts_what_a_killed_upload_left(ministack, bucket_name, opened):
    ministack.make_bucket(bucket_name)
    client = ministack.client()
    for key in ("run/7/attempt-x/d", "runner/d"):
        client.create_multipart_upload(Bucket=bucket_name, Key=key)
    backend = opened(ministack, bucket_name)
    assert await backend.abort_uploads("", older_than=3600) == 0
    assert await backend.abort_uploads("", older_than=0) == 1
    left = client.list_multipart_uploads(Bucket=bucket_name)["Uploads"]
    assert [upload["Key"] for upload in left] == ["runner/d"]


@pytest.mark.parametrize("action", ["status", "drop", "drop_after", "truncate"])
@pytest.mark.parametrize("replace", [False, True], ids=["save", "overwrite"])
async def test_a_fault_at_any_request_of_a_save_costs_nothing(
    ministack, proxied, bucket_name, opened, action, replace
):
    """Each request of a save in turn meets the fault once; the save succeeds all the same."""
    ministack.make_bucket(bucket_name)
    plain = opened(ministack, bucket_name)
    faulty = opened(ministack, bucket_name, endpoint_url=proxied.url)
    await faulty.commit_strategy()
    number, asked = 0, 1
    while number < asked:
        number += 1
        final = f"{number}"
        if replace:
            await save(plain, final, "old")
        proxied.clear()
        proxied.add(action, nth=number)
        await save(faulty, final, "new", replace=replace)
        asked = len(proxied.requests)
        area = await open_committed(plain, final)
        assert {name: await area.get(name) for name in files_of("new")} == files_of("new")
    assert number > 10


@pytest.mark.parametrize("replace", [False, True], ids=["save", "overwrite"])
async def test_a_store_that_fails_from_any_request_on_keeps_the_old_one(
    ministack, proxied, bucket_name, opened, replace
):
    """The store goes away at each request in turn and comes back after the save gave up."""
    ministack.make_bucket(bucket_name)
    plain = opened(ministack, bucket_name)
    faulty = opened(ministack, bucket_name, endpoint_url=proxied.url, max_attempts=1)
    await faulty.commit_strategy()
    number, outcomes = 0, set()
    while True:
        number += 1
        final = f"{number}"
        if replace:
            await save(plain, final, "old")
        proxied.clear()
        rule = proxied.add("drop", times=0)
        rule._seen, rule.nth = 0, 0
        rule.applies = counted(number)
        try:
            strategy = PointerCommit(faulty, grace_s=0.0, decision_deadline_s=0.2, pause_s=0.01)
            txn = await strategy.begin(final)
            area = strategy.area(txn)
            for name, data in files_of("new").items():
                await area.put(name, data)
            await strategy.commit(txn, await strategy.seal(txn, area), replace=replace)
        except errors.StorageError as error:
            outcomes.add(type(error).__name__)
        else:
            break
        stored = await read_record(plain, final)
        assert stored.committed is replace
        await PointerCommit(plain, grace_s=0.0).sweep("", older_than=0.0)
        left = [i.key async for i in plain.walk(final) if "attempt-" in i.key]
        assert all(str(stored.attempt) in key for key in left), left
    assert "CommitUnknownError" in outcomes
    assert number > 10


def counted(number):
    """Every request from the given one on."""
    seen = 0

    def applies(_line):
        nonlocal seen
        seen += 1
        return seen >= number

    return applies


async def test_of_two_writers_one_is_told_who_won(ministack, bucket_name, opened):
    ministack.make_bucket(bucket_name)
    one, two = opened(ministack, bucket_name), opened(ministack, bucket_name)
    found = await asyncio.gather(
        save(one, "7", "one"), save(two, "7", "two"), return_exceptions=True
    )
    winners = [record for record in found if not isinstance(record, Exception)]
    losers = [error for error in found if isinstance(error, errors.CommitConflictError)]
    assert len(winners) == len(losers) == 1
    assert winners[0].attempt in str(losers[0])


async def test_a_prefix_that_is_an_object_is_foreign(ministack, bucket_name, opened):
    ministack.make_bucket(bucket_name)
    backend = opened(ministack, bucket_name)
    await backend.put("7", b"an object")
    with pytest.raises(errors.DestinationOccupiedError):
        await save(backend, "7", "new")
    assert await backend.get("7") == b"an object"


@pytest.fixture(autouse=True)
def ask_again():
    """Each test probes anew."""
    probe._answers.clear()
