"""What a user is told when something is wrong, and what is then true."""

import pytest

from holdfast_gcs import GcsBackend
from holdfast_storage import errors
from holdfast_storage.commit import DecidedRenameCommit, PointerCommit
from holdfast_storage.testing.backend_tests import keys_below
from holdfast_storage.testing.history import History


async def test_a_missing_bucket_is_no_absent_object(opened):
    backend = opened("no-such-bucket")
    for call in (backend.get("k"), backend.put("k", b"")):
        with pytest.raises(errors.StorageError, match="'no-such-bucket' does not exist") as caught:
            await call
        assert not isinstance(caught.value, FileNotFoundError)


async def test_object_permissions_suffice_on_a_flat_bucket(gcs, bucket_name, opened, caplog):
    gcs.make_bucket(bucket_name)
    gcs.denied |= {"storage.buckets.get", "storage.buckets.getStorageLayout"}
    backend = opened(bucket_name)
    assert type(await backend.commit_strategy()) is PointerCommit
    assert "taken for a flat bucket" in caplog.text
    history = History("run/7")
    await history.save(backend, "A")
    assert await history.committed(backend) == "A"


async def test_the_settings_say_what_may_not_be_asked(gcs, bucket_name, opened, caplog):
    gcs.make_bucket(bucket_name, hierarchical=True)
    gcs.denied.add("storage.buckets.getStorageLayout")
    backend = opened(bucket_name, hns=True)
    assert type(await backend.commit_strategy()) is DecidedRenameCommit
    assert caplog.text == ""


@pytest.mark.parametrize("verb", ["get", "create", "list", "delete"])
async def test_a_denied_permission_is_named(gcs, bucket_name, opened, verb):
    gcs.make_bucket(bucket_name)
    gcs.denied.add(f"storage.objects.{verb}")
    backend = opened(bucket_name)
    calls = {
        "get": lambda: backend.get("k"),
        "create": lambda: backend.put("k", b""),
        "list": lambda: backend.children(""),
        "delete": lambda: backend.delete("k"),
    }
    with pytest.raises(errors.StoragePermissionError, match=f"storage.objects.{verb}"):
        await calls[verb]()


async def test_missing_credentials_are_a_matter_of_permission(gcs, bucket_name, opened):
    gcs.make_bucket(bucket_name)
    gcs.token = "needed"
    with pytest.raises(errors.StoragePermissionError, match="Invalid Credentials"):
        await opened(bucket_name).get("k")


@pytest.mark.parametrize("fault", ["before", "after", "fail"])
async def test_a_rename_whose_reply_is_lost_happens_once(gcs, bucket_name, opened, fault):
    gcs.make_bucket(bucket_name, hierarchical=True)
    backend = opened(bucket_name)
    await backend.put("from/a", b"1")
    gcs.rename_fault = fault
    await backend.rename_prefix("from", "to")
    assert await keys_below(backend, "") == ["to/a"]


@pytest.mark.parametrize("fault", ["before", "after", "fail"])
async def test_a_commit_survives_a_rename_whose_reply_is_lost(gcs, bucket_name, opened, fault):
    gcs.make_bucket(bucket_name, hierarchical=True)
    backend = opened(bucket_name)
    gcs.rename_fault = fault
    history = History("run/7")
    await history.save(backend, "A")
    assert history.acknowledged == {"A"}
    assert await history.judge(backend) == "A"
    assert await history.leftovers(backend) == []


async def test_one_write_a_second_to_an_object_is_waited_for(gcs, bucket_name, opened):
    gcs.make_bucket(bucket_name)
    gcs.rate_limited = True
    backend = opened(bucket_name)
    await backend.put("k", b"1")
    await backend.put("k", b"2")
    assert await backend.get("k") == b"2"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpont": "x"}, "unknown settings"),
        ({"token": {"type": "service_account"}}, "path of a credentials file"),
        ({"endpoint_url": "http://user:pw@x"}, "without credentials"),
        ({"requester_pays": True}, "paying project"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused(options, told):
    with pytest.raises(errors.InvalidURLError, match=told):
        GcsBackend("gs://bucket/run", options)


@pytest.mark.parametrize("bucket", ["folders", "o.b", "renameto"])
async def test_a_bucket_may_be_called_like_a_part_of_the_api(gcs, opened, bucket):
    backend = opened(gcs.make_bucket(bucket, hierarchical=True))
    history = History("folders/o/7")
    await history.save(backend, "A")
    await history.overwrite(backend, "B")
    assert await history.committed(backend) == "B"
