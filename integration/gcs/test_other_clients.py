"""Our GCS server, asked by the clients that others wrote: it answers them as GCS documents.

What a server of our own shows is worth as much as it resembles the service. TensorStore's
client is in `integration/stores/test_planes.py`.
"""

import google.api_core.exceptions as refused
import pytest
from gcsfs.core import GCSFileSystem  # without its experimental folders
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from holdfast_storage import IfAbsent, ObjectExistsError
from holdfast_storage.loop import get_loop


@pytest.fixture
def official(gcs, gcs_bucket):
    """google-cloud-storage on the bucket."""
    client = storage.Client(
        project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": gcs.url}
    )
    return client.bucket(gcs_bucket)


@pytest.fixture
def gcs_fs(gcs, gcs_bucket):
    """gcsfs's own calls on the bucket, and the bucket's name."""
    return (
        GCSFileSystem(
            endpoint_url=gcs.url, token="anon", use_listings_cache=False, skip_instance_cache=True
        ),
        gcs_bucket,
    )


def test_the_official_client_reads_and_writes(official):
    blob = official.blob("a b/ключ%#?.txt")
    blob.upload_from_string(b"0123456789", if_generation_match=0)
    assert official.blob(blob.name).download_as_bytes() == b"0123456789"
    assert official.blob(blob.name).download_as_bytes(start=2, end=4) == b"234"
    found = official.get_blob(blob.name)
    assert (found.size, found.generation) == (10, blob.generation)
    assert found.crc32c
    assert found.md5_hash


def test_the_official_client_meets_its_preconditions(official):
    blob = official.blob("k")
    blob.upload_from_string(b"one", if_generation_match=0)
    first = blob.generation
    with pytest.raises(refused.PreconditionFailed):
        official.blob("k").upload_from_string(b"two", if_generation_match=0)
    official.blob("k").upload_from_string(b"two", if_generation_match=first)
    with pytest.raises(refused.PreconditionFailed):
        official.blob("k").upload_from_string(b"three", if_generation_match=first)
    with pytest.raises(refused.PreconditionFailed):
        official.blob("k").delete(if_generation_match=first)
    assert official.blob("k").download_as_bytes() == b"two"
    official.blob("k").delete()
    with pytest.raises(refused.NotFound):
        official.blob("k").delete()
    assert official.get_blob("k") is None


def test_the_official_client_lists_in_pages_and_levels(official):
    for name in ("run/1/a", "run/1/b", "run/2/a", "run/top", "other"):
        official.blob(name).upload_from_string(b"")
    listed = official.list_blobs(prefix="run/", delimiter="/", page_size=1)
    assert [blob.name for blob in listed] == ["run/top"]
    assert listed.prefixes == {"run/1/", "run/2/"}
    names = [blob.name for blob in official.list_blobs(page_size=2)]
    assert [name for name in names if not name.endswith("/")] == [
        "other", "run/1/a", "run/1/b", "run/2/a", "run/top",
    ]  # fmt: skip


def test_the_official_client_uploads_in_chunks(official):
    data = bytes(range(256)) * 4096 * 2
    blob = official.blob("large", chunk_size=256 << 10)
    blob.upload_from_string(data, if_generation_match=0)
    assert official.blob("large").download_as_bytes() == data
    with pytest.raises(refused.PreconditionFailed):
        official.blob("large", chunk_size=256 << 10).upload_from_string(data, if_generation_match=0)


def test_the_official_client_is_refused_what_is_denied(official, gcs):
    official.blob("k").upload_from_string(b"x")
    gcs.denied.add("storage.objects.get")
    try:
        with pytest.raises(refused.Forbidden, match="storage.objects.get"):
            official.blob("k").download_as_bytes()
    finally:
        gcs.denied.clear()
    with pytest.raises(refused.NotFound):
        official.client.bucket("no-such-bucket").blob("k").upload_from_string(b"")


def test_gcsfs_reads_and_writes(gcs_fs):
    fs, bucket = gcs_fs
    fs.pipe(f"{bucket}/run/1/a b", b"0123456789")
    assert fs.cat(f"{bucket}/run/1/a b") == b"0123456789"
    assert fs.cat_file(f"{bucket}/run/1/a b", 2, 5) == b"234"
    assert fs.info(f"{bucket}/run/1/a b")["size"] == 10
    assert sorted(fs.find(f"{bucket}/run")) == [f"{bucket}/run/1/a b"]
    assert [path.rstrip("/") for path in fs.ls(f"{bucket}/run", detail=False)] == [
        f"{bucket}/run/1"
    ]
    with fs.open(f"{bucket}/large", "wb", block_size=256 << 10) as file:
        file.write(b"x" * (600 << 10))
    assert fs.info(f"{bucket}/large")["size"] == 600 << 10
    fs.rm(f"{bucket}/large")
    assert not fs.exists(f"{bucket}/large")


def test_all_of_them_see_what_holdfast_wrote(official, gcs_fs, opened):
    fs, bucket = gcs_fs
    backend = opened(bucket)

    async def write():
        await backend.put("k", b"ours", condition=IfAbsent())

    get_loop().run(write())
    where = f"{backend.root.removeprefix('gs://')}/k"
    assert fs.cat(where) == b"ours"
    blob = official.get_blob(where.partition("/")[2])
    assert blob.download_as_bytes() == b"ours"
    blob.upload_from_string(b"theirs", if_generation_match=blob.generation)
    assert get_loop().run(backend.get("k")) == b"theirs"
    with pytest.raises(ObjectExistsError):
        get_loop().run(write())
