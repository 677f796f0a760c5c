"""A job in trouble: what `save` and `load` say, and that the checkpoint before is untouched.

Each trouble is tried twice: for everything, and for the bytes of arrays alone, which another
client moves.
"""

import re
from dataclasses import dataclass

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend
from integration.servers.processes import free_port
from integration.servers.proxy import running_proxy

SECRET = "secret-of-this-test"


@dataclass(frozen=True)
class Job:
    """A checkpoint on a store, reached through a proxy.

    Attributes:
        kind: Of the store.
        place: The checkpoint.
        proxy: Makes trouble.
        endpoint: The variable that says where the store is.
        bucket: Its name.
    """

    kind: str
    place: str
    proxy: object
    endpoint: str
    bucket: str


@pytest.fixture(params=["s3", "gcs flat", "gcs hierarchical"])
def job(request, ministack, gcs, bucket_name, monkeypatch):
    """A committed checkpoint that says `old`, and nothing else on the store."""
    s3 = request.param == "s3"
    scheme, endpoint = ("s3", "AWS_ENDPOINT_URL") if s3 else ("gs", "STORAGE_EMULATOR_HOST")
    if s3:
        ministack.make_bucket(bucket_name)
        for name, value in (ministack.variables | {"AWS_SECRET_ACCESS_KEY": SECRET}).items():
            monkeypatch.setenv(name, value)
    else:
        gcs.make_bucket(bucket_name, hierarchical="hier" in request.param)
    with running_proxy(ministack.endpoint if s3 else gcs.url) as proxy:
        monkeypatch.setenv(endpoint, proxy.url)
        place = f"{scheme}://{bucket_name}/team a+b/100% ключ/checkpoint"
        hf.save(place, state("old"))
        monkeypatch.setenv(
            "HOLDFAST_STORAGE_OPTIONS",
            f'{{"{scheme}": {{"max_attempts": 2, "timeout_s": 20}}}}',
        )
        yield Job(request.param, place, proxy, endpoint, bucket_name)


def state(label):
    return {"label": label, "array": np.full(300_000, ord(label[0]), np.float32)}


def assert_untouched(job):
    """The old one is there, and a sweep of everything dead leaves nothing else."""
    job.proxy.clear()
    found = hf.load(job.place)
    assert found["label"] == "old"
    assert (found["array"] == state("old")["array"]).all()
    assert hf.verify(job.place).ok
    backend = open_backend(job.place.rpartition("/")[0])

    async def left():
        strategy = await backend.commit_strategy()
        strategy._grace_s = 0.0
        await strategy.sweep("", older_than=0.0)
        listing = await backend.children("")
        inside = await backend.children("checkpoint")
        return listing, inside

    listing, inside = get_loop().run(left())
    assert listing.prefixes == ("checkpoint",)
    assert len([p for p in inside.prefixes if "attempt-" in p]) == (0 if "hier" in job.kind else 1)


def xml(code, more=""):
    return f"<Error><Code>{code}</Code><Message>said so</Message>{more}</Error>"


def api(code, message, reason="forbidden"):
    details = f'[{{"message": "{message}", "domain": "global", "reason": "{reason}"}}]'
    return f'{{"error": {{"code": {code}, "message": "{message}", "errors": {details}}}}}'


REFUSED, FAILED = hf.errors.StoragePermissionError, hf.errors.StorageError
DENIED = "job@own.iam does not have storage.objects.create access"
S3 = {
    "no permission": (403, xml("AccessDenied"), REFUSED, r"needs s3:(GetObject|PutObject)"),
    "a wrong secret": (403, xml("SignatureDoesNotMatch"), REFUSED, "check the key, the secret"),
    "an expired token": (400, xml("ExpiredToken"), REFUSED, "session token"),
    "a wrong region": (
        400, xml("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), FAILED,
        "set the region to eu-west-1",
    ),
    "a wrong clock": (403, xml("RequestTimeTooSkewed"), FAILED, "set the clock"),
    "a bucket that is gone": (404, xml("NoSuchBucket"), FAILED, "does not exist"),
    "a full store": (507, xml("InsufficientStorage"), hf.errors.StorageFullError, "full"),
    "a server that is not S3": (200, "<html><p>Hi</p></html>", FAILED, "endpoint right"),
    "a server that is overloaded": (503, xml("SlowDown"), hf.errors.TransientStorageError, ""),
}  # fmt: skip
GCS = {
    "no permission": (403, api(403, DENIED), REFUSED, r"storage\.objects\.create"),
    "wrong credentials": (401, api(401, "Invalid Credentials", "authError"), REFUSED, "Invalid"),
    "a bucket that is gone": (
        404, api(404, "The specified bucket does not exist.", "notFound"), FAILED, "does not exist",
    ),
    "a server that is not GCS": (200, "<html><p>Hi</p></html>", FAILED, "endpoint right"),
    "a server that is overloaded": (503, "", hf.errors.TransientStorageError, ""),
}  # fmt: skip
EVERYTHING = ".*"
ARRAYS = r"(/d/|manifest\.ocdbt)"


def troubles(job, what):
    """Those that show: to TensorStore any page is bytes, and any 404 is absence."""
    found = S3 if job.kind == "s3" else GCS
    hidden = ("a server that is not", "a bucket that is gone") if what == ARRAYS else ()
    return {name: told for name, told in found.items() if not name.startswith(hidden)}


def assert_told(job, caught, name, kind, words):
    told = str(caught.value)
    assert isinstance(caught.value, kind), f"{name}: {caught.value!r}"
    assert not isinstance(caught.value, (FileNotFoundError, hf.errors.DamagedCheckpointError)), told
    assert re.search(words, told), f"{name}: {told}"
    assert job.bucket in told, f"{name}: {told}"
    assert SECRET not in told


@pytest.mark.parametrize("what", [EVERYTHING, ARRAYS], ids=["everything", "arrays"])
def test_a_save_in_trouble_says_what_and_leaves_the_old_one(job, what):
    for name, (status, body, kind, words) in troubles(job, what).items():
        job.proxy.clear()
        job.proxy.add("status", what, times=0, status=status, body=body)
        with pytest.raises(FAILED) as caught:
            hf.save(job.place, state("new"), overwrite=True)
        assert_told(job, caught, name, kind, words)
    assert_untouched(job)


@pytest.mark.parametrize("what", [EVERYTHING, ARRAYS], ids=["everything", "arrays"])
def test_a_load_in_trouble_says_what_and_never_that_it_is_damaged(job, what):
    for name, (status, body, kind, words) in troubles(job, what).items():
        job.proxy.clear()
        job.proxy.add("status", what, times=0, status=status, body=body)
        with pytest.raises(FAILED) as caught:
            hf.load(job.place)
        assert_told(job, caught, name, kind, words)
    assert_untouched(job)


def test_a_mistyped_endpoint_is_told_and_may_be_corrected_in_the_same_process(job, monkeypatch):
    right, wrong = job.proxy.url, f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv(job.endpoint, wrong)
    with pytest.raises(hf.errors.TransientStorageError, match=wrong):
        hf.save(job.place, state("new"), overwrite=True)
    monkeypatch.setenv(job.endpoint, right)
    assert_untouched(job)
