"""What is configured, and what both planes are told about it."""

import json
import os
import subprocess
import sys

import pytest

from holdfast_gcs import GcsBackend, open_backend, settings, translation
from holdfast_storage import errors
from holdfast_storage.settings import OPTIONS_VARIABLE

LOCAL = "http://127.0.0.1:9"
VARIABLES = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING",
    "GOOGLE_CLOUD_PROJECT",
    "STORAGE_EMULATOR_HOST",
    "TENSORSTORE_GCS_HTTP_URL",
    OPTIONS_VARIABLE,
)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    settings.forget()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"endpont_url": LOCAL}, r"unknown settings \['endpont_url'\]; known are .*'endpoint_url'"),
        ({"endpoint_url": "ftp://x"}, "must be http"),
        ({"endpoint_url": "http://user:pw@x"}, "without credentials"),
        ({"token": "no-such-file.json"}, "the path of a credentials file"),
        ({"token": {"type": "service_account", "private_key": "pw"}}, "reaches only one of them"),
        ({"token": "cache"}, "one of anon, google_default, cloud"),
        ({"hns": "perhaps"}, "'hns' is true or false"),
        ({"timeout_s": "soon"}, "'timeout_s' is a number above zero"),
        ({"max_attempts": 0}, "'max_attempts' is a number above zero"),
        ({"requester_pays": True}, "needs the paying project"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_before_any_request(options, told):
    with pytest.raises(errors.InvalidURLError, match=told) as caught:
        GcsBackend("gs://bucket/run", options)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["UPPER", "ab", "-dash", "dash-", "with space", "x" * 223])
def test_a_name_that_no_bucket_can_have_is_refused(bucket):
    with pytest.raises(errors.InvalidURLError, match="no name of a bucket"):
        GcsBackend(f"gs://{bucket}/run", {})


@pytest.mark.parametrize(
    ("given", "meant"),
    [(True, True), ("TRUE", True), ("1", True), (False, False), ("false", False), (None, None)],
)
def test_yes_and_no_may_come_as_words_of_the_environment(given, meant):
    assert settings.resolve("bucket", {"hns": given}).hierarchical is meant


def test_who_pays_is_a_project_or_the_job_s_own():
    def payer(**options):
        return settings.resolve("bucket", options, {"GOOGLE_CLOUD_PROJECT": "own"}).user_project

    assert payer() is None
    assert payer(requester_pays=False) is None
    assert payer(requester_pays="true") == "own"
    assert payer(requester_pays=True, project="named") == "named"
    assert payer(requester_pays="other") == "other"


def test_an_emulator_is_met_without_credentials_unless_some_are_given(tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text("{}")
    env = {"STORAGE_EMULATOR_HOST": "127.0.0.1:9"}
    assert settings.resolve("bucket", {}, env).endpoint == LOCAL
    assert settings.resolve("bucket", {}, env).token == "anon"
    assert settings.resolve("bucket", {"token": str(file)}, env).token == str(file)
    assert settings.resolve("bucket", {}, {}).token is None


@pytest.mark.parametrize(("scheme", "url"), [("gcs", "gs://bucket/a"), ("gs", "gcs://bucket/a")])
def test_gs_and_gcs_are_one_scheme_and_one_root(scheme, url, monkeypatch):
    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps({scheme: {"endpoint_url": LOCAL}}))
    backend = open_backend(url, {"timeout_s": 5})
    assert backend.settings.endpoint == LOCAL
    assert backend.settings.timeout_s == 5
    assert backend.root == "gs://bucket/a"
    assert open_backend(url, {"endpoint_url": "http://x"}).settings.endpoint == "http://x"


def test_a_second_endpoint_in_one_process_is_refused_before_arrays_go_astray():
    GcsBackend("gs://bucket/a", {"endpoint_url": LOCAL}).kv_target("x")
    assert os.environ["TENSORSTORE_GCS_HTTP_URL"] == LOCAL
    GcsBackend("gs://another/b", {"endpoint_url": LOCAL}).kv_target("x")
    for options in ({"endpoint_url": "http://127.0.0.1:10"}, {}):
        with pytest.raises(errors.InvalidURLError, match="for the whole process") as caught:
            GcsBackend("gs://bucket/a", options).kv_target("x")
        assert LOCAL in str(caught.value)


def test_a_second_set_of_credentials_in_one_process_is_refused(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for file in (one, two):
        file.write_text("{}")
    GcsBackend("gs://bucket/a", {"token": str(one)}).kv_target("x")
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(one)
    for other in (str(two), "cloud"):
        with pytest.raises(errors.InvalidURLError, match="GOOGLE_APPLICATION_CREDENTIALS"):
            GcsBackend("gs://bucket/a", {"token": other}).kv_target("x")


def test_a_token_that_only_tensorstore_would_use_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "ya29.secret")
    with pytest.raises(errors.InvalidURLError, match="is set and this bucket needs it unset") as e:
        GcsBackend("gs://bucket/a", {}).kv_target("x")
    assert "ya29" not in str(e.value)


def test_google_s_own_endpoint_may_be_spelt_out(monkeypatch):
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", settings.PUBLIC)
    target = GcsBackend("gs://bucket/a", {"requester_pays": "payer"}).kv_target("x")
    assert target.spec == {"driver": "gcs", "bucket": "bucket", "path": "a/x/"}
    assert target.context["gcs_user_project"] == {"project_id": "payer"}


def test_a_message_shows_how_the_bucket_is_reached():
    shown = settings.resolve("bucket", {"token": "anon"}).describe()
    assert shown == f"bucket=bucket, endpoint={settings.PUBLIC}, project=not set, signed=no"


def said(message, reason="x"):
    return json.dumps({"error": {"message": message, "errors": [{"reason": reason}]}}).encode()


NO_BUCKET = "The specified bucket does not exist."


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, said(NO_BUCKET), errors.StorageError),
        (404, NO_BUCKET.encode(), errors.StorageError),
        (404, said(f"No such object: b/{NO_BUCKET}"), errors.ObjectNotFoundError),
        (404, b"No such object: b/the bucket does not exist", errors.ObjectNotFoundError),
        (404, b"<html>Not here</html>", errors.StorageError),
        (401, said("Anonymous caller"), errors.StoragePermissionError),
        (403, said("no"), errors.StoragePermissionError),
        (403, said("slower", "userRateLimitExceeded"), errors.TransientStorageError),
        (429, said("slower"), errors.TransientStorageError),
        (408, b"", errors.TransientStorageError),
        (502, b"<html>Bad gateway</html>", errors.TransientStorageError),
        (501, b"", errors.UnsupportedOperationError),
        (412, said("conditionNotMet"), errors.PreconditionFailedError),
        (400, said("no project", "required"), errors.StorageError),
        (302, b"", errors.StorageError),
    ],
)
def test_each_reply_is_one_error_of_ours(status, body, kind):
    where = {"key": "k", "root": "gs://bucket"}
    found = translation.translate(
        status, body, settings.resolve("bucket", {}), doing="read an object", **where
    )
    assert type(found) is kind or (kind is errors.TransientStorageError and isinstance(found, kind))
    assert "gs://bucket" in str(found)


@pytest.mark.parametrize("key", ["k" * 1025, "é" * 513, "a\nb", "a\rb"])
async def test_a_name_that_gcs_cannot_hold_is_refused_before_any_request(key):
    backend = GcsBackend("gs://bucket", {"endpoint_url": LOCAL, "max_attempts": 1})
    for call in (backend.get(key), backend.put(key, b""), backend.stat(key), backend.delete(key)):
        with pytest.raises(errors.InvalidKeyError, match="GCS holds names"):
            await call


def test_importing_the_package_imports_no_client():
    script = (
        "import sys, holdfast_gcs; "
        "print({'gcsfs', 'aiohttp', 'google.auth', 'tensorstore'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "set()\n", found.stderr
