"""What a user writes, and the place it names."""

import os
from pathlib import Path

import pytest

from holdfast_storage import errors, locate
from holdfast_storage.urls import resolve_url


@pytest.mark.parametrize(
    ("path", "env", "url"),
    [
        ("/a/b/../c", {}, "file:///a/c"),
        ("/a//b/", {}, "file:///a/b"),
        ("//a/b", {}, "file:///a/b"),
        ("file:///a/b", {}, "file:///a/b"),
        ("file:////a/b", {}, "file:///a/b"),
        ("~/runs", {}, f"file://{os.path.expanduser('~')}/runs"),
        ("runs/x", {"HOLDFAST_ROOT": "/data"}, "file:///data/runs/x"),
        ("./runs", {"HOLDFAST_ROOT": "~"}, f"file://{os.path.expanduser('~')}/runs"),
        ("./s3:/x", {"HOLDFAST_ROOT": "/data"}, "file:///data/s3:/x"),
        ("runs/s3:/x", {"HOLDFAST_ROOT": "/data"}, "file:///data/runs/s3:/x"),
        ("./~nobody/x", {"HOLDFAST_ROOT": "/data"}, "file:///data/~nobody/x"),
        ("step:7", {"HOLDFAST_ROOT": "/data"}, "file:///data/step:7"),
        ("runs/x", {"HOLDFAST_ROOT": "s3://bucket/team/"}, "s3://bucket/team/runs/x"),
        ("runs/x", {"HOLDFAST_ROOT": "file:///data"}, "file:///data/runs/x"),
        ("/abs", {"HOLDFAST_ROOT": "s3://bucket"}, "file:///abs"),
        ("gs://other/x", {"HOLDFAST_ROOT": "s3://bucket"}, "gs://other/x"),
        ("S3://Bucket/a//b/./c/../d/", {}, "s3://Bucket/a/b/d"),
        ("gs://bucket/user@host", {}, "gs://bucket/user@host"),
    ],
)
def test_what_a_user_writes_becomes_one_place(path, env, url):
    assert resolve_url(path, env=env).url == url


def test_relative_paths_are_below_the_working_directory_of_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_url("x", env={}).path == str(tmp_path / "x")
    assert resolve_url(tmp_path / "y", env={}).path == str(tmp_path / "y")
    assert resolve_url("x", env={"HOLDFAST_ROOT": "runs"}).path == str(tmp_path / "runs" / "x")


def test_the_environment_is_read_at_the_call(monkeypatch):
    monkeypatch.setenv("HOLDFAST_ROOT", "memory://one")
    assert resolve_url("x").url == "memory://one/x"
    monkeypatch.setenv("HOLDFAST_ROOT", "memory://two")
    assert resolve_url("x").url == "memory://two/x"


@pytest.mark.parametrize(
    ("path", "env", "said"),
    [
        ("", {}, "no path or URL; give"),
        ("  ", {}, "no path"),
        ("a\0b", {}, "no path"),
        ("x", {"HOLDFAST_ROOT": ""}, "HOLDFAST_ROOT is empty"),
        ("x", {"HOLDFAST_ROOT": " "}, "HOLDFAST_ROOT is empty"),
        ("x", {"HOLDFAST_ROOT": "s3:/bucket"}, "is no URL"),
        ("x", {"HOLDFAST_ROOT": "s3://"}, "lacks a bucket"),
        ("../../x", {"HOLDFAST_ROOT": "s3://bucket/team"}, "leads out"),
        ("s3://", {}, "lacks a bucket"),
        ("s3:///a/b", {}, "lacks a bucket"),
        ("s3://../b", {}, "lacks a bucket"),
        ("s3://b/../c", {}, "leads out"),
        ("s3://b/c?x=1", {}, "query"),
        ("s3://b/c#x", {}, "fragment"),
        ("file://host/x", {}, "names a host"),
        ("file:/x", {}, "is no URL"),
        (Path("gs://bucket") / "run", {}, "pathlib.Path, which drops a slash"),
        ("~no-such-user/x", {}, "no such user"),
        (b"bytes", {}, "text"),
    ],
)
def test_what_is_no_place_is_refused_with_what_would_do(path, env, said):
    with pytest.raises(errors.InvalidURLError, match=said):
        resolve_url(path, env=env)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(errors.InvalidURLError, match="credentials") as caught:
        resolve_url("s3://user:hidden@bucket/x", env={})
    assert "hidden" not in str(caught.value)


def test_a_whole_store_is_no_checkpoint():
    with pytest.raises(errors.InvalidURLError, match="needs a name inside"):
        locate("memory://bucket")
    with pytest.raises(errors.InvalidURLError, match="needs a name inside"):
        locate("/")
    backend, key = locate("memory://bucket/run/7")
    assert (backend.root, key) == ("memory://bucket/run", "7")
