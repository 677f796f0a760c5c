"""Settings of a job: which of several wins, and what a message shows of them."""

import pytest

from holdfast_storage import errors, open_backend
from holdfast_storage.settings import describe_settings, resolve_settings

VARIABLE = "HOLDFAST_STORAGE_OPTIONS"


@pytest.fixture
def fsspec_settings(monkeypatch):
    config = pytest.importorskip("fsspec.config")
    settings = {}
    monkeypatch.setattr(config, "conf", settings)
    return settings


def test_settings_in_code_beat_the_environment_which_beats_fsspec(fsspec_settings):
    fsspec_settings["s3"] = {"region": "us", "anon": True, "endpoint_url": "https://store"}
    env = {VARIABLE: '{"s3": {"region": "eu", "anon": true}, "gs": {}}'}
    found = resolve_settings("s3", {"anon": False}, env=env)
    assert found == {"region": "eu", "anon": False, "endpoint_url": "https://store"}
    assert resolve_settings("gs", env=env) == {}
    assert resolve_settings("s3", env={}) == fsspec_settings["s3"]


def test_the_environment_is_read_at_the_call(monkeypatch):
    monkeypatch.setenv(VARIABLE, '{"weird": {"x": 1}}')
    assert resolve_settings("weird") == {"x": 1}
    monkeypatch.delenv(VARIABLE)
    assert resolve_settings("weird") == {}


def test_what_was_resolved_is_the_callers_to_change(fsspec_settings):
    fsspec_settings["s3"] = {"region": "us"}
    options = {"anon": True}
    resolve_settings("s3", options, env={})["region"] = "eu"
    assert fsspec_settings["s3"] == {"region": "us"}
    assert options == {"anon": True}


def test_fsspecs_settings_of_local_files_are_not_holdfasts(fsspec_settings):
    fsspec_settings.update({"file": {"auto_mkdir": True}, "memory": {"x": 1}})
    assert resolve_settings("file", env={}) == resolve_settings("memory", env={}) == {}
    open_backend("memory://settings/a")


@pytest.mark.parametrize("text", ["{", "[]", '{"s3": 5}', '"s3"'])
def test_malformed_settings_are_refused(text):
    with pytest.raises(errors.InvalidURLError, match=VARIABLE):
        resolve_settings("s3", env={VARIABLE: text})


def test_secrets_are_not_shown_at_any_depth():
    class Session:
        def __repr__(self):
            return "Session(hidden)"

    shown = describe_settings(
        {
            "secret": "hidden",
            "aws_key": "hidden",
            "region": "eu",
            "client_kwargs": {"aws_session_token": "hidden", "verify": False},
            "nested": [{"password": "hidden"}, ("plain",)],
            "endpoint_url": "https://user:hidden@store:9000/x",
            "session": Session(),
        }
    )
    assert "hidden" not in shown
    for part in ("region=eu", "'verify': False", "plain", "https://***@store:9000/x", "<Session>"):
        assert part in shown
    assert describe_settings({}) == "none"
