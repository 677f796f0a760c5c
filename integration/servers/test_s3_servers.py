"""The servers behave as the table in the README says, and none outlives the test run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from integration.servers import s3
from integration.servers.processes import clean_environment, free_port, listens, server

STARTS = {"ministack": s3.ministack, "moto": s3.moto, "rclone": s3.rclone}


@pytest.fixture(params=["ministack", "moto", "rclone", "seaweedfs"])
def any_server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(any_server):
    return any_server.client()


@pytest.fixture
def bucket(any_server, bucket_name):
    return any_server.make_bucket(bucket_name)


def status_of(call, **arguments):
    """What a request was answered, be it an error."""
    try:
        reply = call(**arguments)
    except ClientError as error:
        reply = error.response
    return reply["ResponseMetadata"]["HTTPStatusCode"]


def content(client, bucket):
    return client.get_object(Bucket=bucket, Key="k")["Body"].read()


# --- conditions and signatures ---------------------------------------------------------------


def test_creating_what_exists_is_refused_where_conditions_are_honoured(any_server, client, bucket):
    def create(body):
        return status_of(client.put_object, Bucket=bucket, Key="k", Body=body, IfNoneMatch="*")

    honoured = any_server.honours_conditions
    assert create(b"first") == 200
    assert create(b"second") == (412 if honoured else 200)
    assert content(client, bucket) == (b"first" if honoured else b"second")


def test_replacing_another_version_is_refused_where_conditions_are_honoured(
    any_server, client, bucket
):
    def swap(body, tag):
        return status_of(client.put_object, Bucket=bucket, Key="k", Body=body, IfMatch=tag)

    honoured = any_server.honours_conditions
    old = client.put_object(Bucket=bucket, Key="k", Body=b"old")["ETag"]
    new = client.put_object(Bucket=bucket, Key="k", Body=b"new")["ETag"]
    assert old != new
    assert swap(b"stale", old) == (412 if honoured else 200)
    assert content(client, bucket) == (b"new" if honoured else b"stale")
    now = client.head_object(Bucket=bucket, Key="k")["ETag"]
    assert swap(b"newest", now) == 200
    assert content(client, bucket) == b"newest"


def test_of_eight_creators_at_once_one_wins_where_conditions_are_honoured(
    any_server, client, bucket
):
    def create(number):
        body = str(number).encode()
        return status_of(client.put_object, Bucket=bucket, Key="k", Body=body, IfNoneMatch="*")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    if any_server.honours_conditions:
        assert answers.count(200) == 1
        assert content(client, bucket) == str(answers.index(200)).encode()
    else:
        assert answers.count(200) > 1


def test_a_wrong_secret_is_refused_where_signatures_are_checked(any_server, bucket):
    wrong = replace(any_server, secret="NOTTHESECRET")
    answer = status_of(wrong.client().list_objects_v2, Bucket=bucket)
    assert answer == (403 if any_server.strict_auth else 200)


# --- processes -------------------------------------------------------------------------------


def test_a_server_listens_on_one_loopback_address_only(any_server):
    port = int(any_server.endpoint.rpartition(":")[2])
    assert listens(port)
    for other in ("127.0.0.2", "::1"):  # whoever listens on all addresses answers on these
        family = socket.AF_INET6 if ":" in other else socket.AF_INET
        with socket.socket(family) as probe:
            probe.settimeout(2)
            assert probe.connect_ex((other, port)) != 0


def alive(pid):
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.parametrize("name", STARTS)
def test_a_server_ends_with_its_block(name):
    with STARTS[name]() as found:
        port = int(found.endpoint.rpartition(":")[2])
        assert alive(found.pid)
        assert listens(port)
    assert not alive(found.pid)
    assert not listens(port)


KILLED_WITH_A_SERVER = """
import os, signal, sys
from integration.servers import s3
with getattr(s3, sys.argv[1])() as found:
    print(found.pid, found.endpoint, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a server with its parent")
@pytest.mark.parametrize("name", STARTS)
def test_a_server_ends_with_a_test_run_that_is_killed(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WITH_A_SERVER, name],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env=clean_environment(TMPDIR=str(tmp_path)),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, endpoint = done.stdout.split()
    port = int(endpoint.rpartition(":")[2])
    for _ in range(200):  # the kernel closes the port a moment after the first thread ended
        if not alive(pid) and not listens(port):
            break
        time.sleep(0.05)
    assert not alive(pid)
    assert not listens(port)


def test_a_server_that_ends_at_once_is_reported_with_what_it_printed():
    command = [sys.executable, "-c", "print('the port is taken'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="the port is taken"), server(command, lambda: False):
        pass


def test_a_server_that_never_answers_is_reported_and_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr("integration.servers.processes._START_S", 2.0)
    note = tmp_path / "pid"
    program = (
        "import os, sys, time; print('still thinking', flush=True);"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(note)]
    with pytest.raises(RuntimeError, match="still thinking"), server(command, lambda: False):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_server_that_will_not_go_is_killed():
    port = free_port()
    program = (
        "import signal, socket, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(port)]
    with server(command, lambda: listens(port)) as process:
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL
    assert not listens(port)


def test_no_cloud_setting_passes_between_a_server_and_the_test_run(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example.com")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    before = dict(os.environ)
    note = tmp_path / "environment"
    program = (
        "import os, sys, time; open(sys.argv[1] + '.part', 'w').write('\\n'.join(os.environ));"
        "os.rename(sys.argv[1] + '.part', sys.argv[1]); time.sleep(600)"
    )
    with server([sys.executable, "-c", program, str(note)], note.exists, {"AWS_REGION": "mars"}):
        names = set(note.read_text().splitlines())
    assert {name for name in names if name.startswith(("AWS_", "GOOGLE_"))} == {
        "AWS_EC2_METADATA_DISABLED",
        "AWS_REGION",
    }
    assert dict(os.environ) == before


def test_a_server_that_is_killed_leaves_nothing_in_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # looked up again
    with s3.ministack() as found:
        assert list(tmp_path.rglob("*.pid"))
        os.kill(found.pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
