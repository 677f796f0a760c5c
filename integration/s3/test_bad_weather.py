"""What a user is told when something is wrong, and what is then true."""

import socket

import pytest

from holdfast_s3 import S3Backend, probe
from holdfast_storage import errors
from holdfast_storage.commit import read_record
from holdfast_storage.values import IfAbsent, IfVersion
from integration.servers.answering import answering
from integration.servers.processes import free_port


@pytest.fixture(autouse=True)
def ask_again():
    """Each test probes anew."""
    probe._answers.clear()


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
    ours = [f"run/7/attempt-{'0f' * 16}/d", f"run/.7.attempt-{'0f' * 16}/state/d"]
    foreign = ["run/7/attempt-x/d", "run/7/dataset.tar", "run/archive", f"runner/{ours[0]}"]
    for key in ours + foreign:
        client.create_multipart_upload(Bucket=bucket_name, Key=key)
    backend = opened(ministack, bucket_name)
    assert await backend.abort_uploads("", older_than=3600) == 0
    assert await backend.abort_uploads("", older_than=0) == 2
    left = client.list_multipart_uploads(Bucket=bucket_name)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == sorted(foreign)
