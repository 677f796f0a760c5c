"""Settings are resolved once, with the precedence that the README states."""

import pytest

from holdfast_s3.settings import resolve
from holdfast_storage import errors


@pytest.fixture(autouse=True)
def no_files(monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


def test_code_comes_before_the_environment():
    env = {"AWS_ENDPOINT_URL": "http://env:1", "AWS_REGION": "env-1"}
    found = resolve("bucket", {"endpoint_url": "http://code:1", "region": "code-1"}, env)
    assert (found.endpoint, found.region) == ("http://code:1", "code-1")
    found = resolve("bucket", {}, env)
    assert (found.endpoint, found.region) == ("http://env:1", "env-1")


def test_the_bucket_is_in_the_host_on_aws_and_in_the_path_elsewhere():
    assert not resolve("bucket", {}, {}).path_style
    assert resolve("dotted.bucket", {}, {}).path_style
    assert resolve("bucket", {"endpoint_url": "http://x:1"}, {}).path_style
    assert resolve("bucket", {"addressing_style": "path"}, {}).path_style


def test_a_description_shows_no_secret():
    found = resolve("bucket", {"key": "AKIDAKID", "secret": "hidden", "token": "also"}, {})
    assert "AKID…" in found.describe()
    assert "hidden" not in found.describe()
    assert "also" not in found.describe()


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(errors.InvalidURLError, match="endpont_url"):
        resolve("bucket", {"endpont_url": "http://x"}, {})
