"""Paths, URLs, settings, the registry, retries and the loop."""

import asyncio
import importlib
import os
import subprocess
import sys
import threading
import warnings

import pytest

from holdfast_storage import errors, get_loop, locate, open_backend, register, unregister
from holdfast_storage.memory import MemoryBackend
from holdfast_storage.retry import RetryPolicy
from holdfast_storage.settings import describe_settings, resolve_settings
from holdfast_storage.urls import resolve_url


@pytest.mark.parametrize(
    ("path", "env", "url"),
    [
        ("/a/b/../c", {}, "file:///a/c"),
        ("/a//b/", {}, "file:///a/b"),
        ("file:///a/b", {}, "file:///a/b"),
        ("~/runs", {}, f"file://{os.path.expanduser('~')}/runs"),
        ("runs/x", {"HOLDFAST_ROOT": "/data"}, "file:///data/runs/x"),
        ("./runs", {"HOLDFAST_ROOT": "~"}, f"file://{os.path.expanduser('~')}/runs"),
        ("runs/x", {"HOLDFAST_ROOT": "s3://bucket/team/"}, "s3://bucket/team/runs/x"),
        ("runs/x", {"HOLDFAST_ROOT": "file:///data"}, "file:///data/runs/x"),
        ("/abs", {"HOLDFAST_ROOT": "s3://bucket"}, "file:///abs"),
        ("gs://other/x", {"HOLDFAST_ROOT": "s3://bucket"}, "gs://other/x"),
        ("S3://Bucket/a//b/./c/../d/", {}, "s3://Bucket/a/b/d"),
    ],
)
def test_what_a_user_writes_becomes_one_place(path, env, url):
    assert resolve_url(path, env=env).url == url


def test_relative_paths_are_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_url("x", env={}).path == str(tmp_path / "x")
    assert resolve_url(tmp_path / "y", env={}).path == str(tmp_path / "y")


@pytest.mark.parametrize(
    ("path", "env", "said"),
    [
        ("", {}, "no path"),
        ("  ", {}, "no path"),
        ("a\0b", {}, "no path"),
        ("x", {"HOLDFAST_ROOT": " "}, "HOLDFAST_ROOT is empty"),
        ("s3://", {}, "lacks a bucket"),
        ("s3://b/../c", {}, "leads out"),
        ("s3://b/c?x=1", {}, "query"),
        ("s3://b/c#x", {}, "fragment"),
        ("file://host/x", {}, "names a host"),
        (b"bytes", {}, "text"),
    ],
)
def test_what_is_no_place_is_refused_with_what_would_do(path, env, said):
    with pytest.raises(errors.InvalidURLError, match=said):
        resolve_url(path, env=env)


def test_a_whole_store_is_no_checkpoint():
    with pytest.raises(errors.InvalidURLError, match="needs a name inside"):
        locate("memory://bucket")
    with pytest.raises(errors.InvalidURLError, match="needs a name inside"):
        locate("/")
    backend, key = locate("memory://bucket/run/7")
    assert (backend.root, key) == ("memory://bucket/run", "7")


def test_settings_in_code_beat_the_environment():
    env = {"HOLDFAST_STORAGE_OPTIONS": '{"s3": {"region": "eu", "anon": true}, "gs": {}}'}
    assert resolve_settings("s3", {"anon": False}, env=env) == {"region": "eu", "anon": False}
    assert resolve_settings("gs", env=env) == {}
    assert resolve_settings("s3", env={}) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"s3": 5}', '"s3"'])
def test_malformed_settings_are_refused(text):
    with pytest.raises(errors.InvalidURLError, match="HOLDFAST_STORAGE_OPTIONS"):
        resolve_settings("s3", env={"HOLDFAST_STORAGE_OPTIONS": text})


def test_secrets_are_not_shown():
    shown = describe_settings({"secret": "a", "aws_key": "b", "token": "c", "region": "eu"})
    assert shown == "aws_key=***, region=eu, secret=***, token=***"


def test_an_unknown_scheme_says_what_to_do():
    with pytest.raises(errors.UnknownSchemeError, match="pip install holdfast-gcs"):
        open_backend("gs://bucket/x")
    with pytest.raises(errors.UnknownSchemeError, match=r"register\(\)"):
        open_backend("weird://bucket/x")


def test_a_registration_serves_a_scheme_until_it_is_undone():
    opened = []

    def factory(url, options):
        opened.append((url, dict(options)))
        return MemoryBackend(url)

    register("mine", factory)
    try:
        first = open_backend("mine://a/b", {"x": 1})
        assert open_backend("mine://a/b", {"x": 1}) is first
        assert open_backend("mine://a/b", {"x": 2}) is not first
        assert opened == [("mine://a/b", {"x": 1}), ("mine://a/b", {"x": 2})]
    finally:
        unregister("mine")
    with pytest.raises(errors.UnknownSchemeError):
        open_backend("mine://a/b")


def test_two_claimants_of_a_scheme_are_an_error(tmp_path, monkeypatch):
    for name in ("one", "two"):
        info = tmp_path / f"dist_{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            f"[holdfast.storage_backends]\ncontested = {name}:open\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(errors.InvalidURLError, match="claimed by dist-one and dist-two"):
        open_backend("contested://a/b")


def test_importing_storage_loads_nothing_heavy():
    script = (
        "import holdfast_storage, sys;"
        "print([m for m in ('jax', 'tensorstore', 'fsspec', 'numpy.testing') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def no_sleep(seconds):
    assert 0 <= seconds <= 10


async def test_what_may_pass_is_tried_again():
    calls = []

    async def call():
        calls.append(1)
        if len(calls) < 3:
            raise errors.TransientStorageError("503")
        return "done"

    assert await RetryPolicy().run(call, what="a get", sleep=no_sleep) == "done"
    assert len(calls) == 3


async def test_the_last_failure_is_raised_as_it_was():
    async def call():
        raise errors.TransientStorageError("503 again")

    with pytest.raises(errors.TransientStorageError, match="503 again"):
        await RetryPolicy(attempts=4).run(call, what="a get", sleep=no_sleep)


async def test_what_will_not_pass_is_not_tried_again():
    calls = []

    async def call():
        calls.append(1)
        raise errors.ObjectNotFoundError("gone")

    with pytest.raises(errors.ObjectNotFoundError):
        await RetryPolicy().run(call, what="a get", sleep=no_sleep)
    assert len(calls) == 1


async def test_a_deadline_names_what_it_waited_for():
    async def call():
        await asyncio.sleep(60)

    with pytest.raises(errors.StorageTimeoutError, match=r"a get took longer.*'k'") as caught:
        await RetryPolicy(deadline_s=0.01).run(call, what="a get", key="k", root="r")
    assert isinstance(caught.value, TimeoutError)


def test_the_loop_serves_any_thread_and_a_running_loop():
    async def name():
        return threading.current_thread().name

    async def inside():
        return get_loop().run(name())

    assert get_loop().run(name()) == "holdfast-storage"
    assert asyncio.run(inside()) == "holdfast-storage"


def test_blocking_on_the_loop_itself_is_refused():
    async def deadlock():
        get_loop().run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="storage loop"):
        get_loop().run(deadlock())


def test_a_timeout_cancels_what_runs():
    cancelled = threading.Event()

    async def forever():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        get_loop().run(forever(), timeout=0.01)
    assert cancelled.wait(10)


def test_a_forked_child_gets_a_loop_of_its_own():
    get_loop().run(asyncio.sleep(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forking with threads may deadlock is the point
        pid = os.fork()
    if pid == 0:
        try:
            get_loop().run(asyncio.sleep(0), timeout=30)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
