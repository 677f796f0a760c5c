"""S3 servers: two that honour conditions, one that ignores them, one that is heavy."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from integration.servers.processes import free_port, listens, server


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        name: Which one.
        endpoint: Its URL.
        key: Access key.
        secret: Belongs to the key.
        pid: Of its process.
        honours_conditions: Whether `If-None-Match` and `If-Match` are obeyed by a put.
        strict_auth: Whether a request signed with a wrong secret is refused.
    """

    name: str
    endpoint: str
    key: str = "AKIDAKID"
    secret: str = "SECRETSECRET"
    pid: int = 0
    honours_conditions: bool = True
    strict_auth: bool = False

    def client(self) -> Any:
        """The official client, to set things up and to look behind holdfast's back."""
        return _client(self.endpoint, self.key, self.secret)

    def make_bucket(self, name: str) -> str:
        """Creates a bucket."""
        self.client().create_bucket(Bucket=name)
        return name

    @property
    def options(self) -> dict[str, Any]:
        """Holdfast's settings for it."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret}

    @property
    def variables(self) -> dict[str, str]:
        """The same, as a job's environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }


@functools.cache
def _client(endpoint: str, key: str, secret: str) -> Any:
    """One client for each server: to make it takes longer than a test's requests."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _program(name: str) -> str:
    """A program of this environment."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


@contextlib.contextmanager
def ministack(port: int = 0, folder: Path | None = None) -> Iterator[S3Server]:
    """Pure Python, objects in memory or in a folder; every condition is honoured."""
    port = port or free_port()
    env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
    if folder is not None:
        env |= {"S3_PERSIST": "1", "S3_DATA_DIR": str(folder)}
    found = S3Server("ministack", f"http://127.0.0.1:{port}")

    def ready() -> bool:  # it accepts connections before it answers
        return listens(port) and found.client().list_buckets() is not None

    with server([_program("ministack")], ready, env) as process:
        yield replace(found, pid=process.pid)


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """The best-known imitation; conditions on whole puts are honoured."""
    port = free_port()
    command = [_program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with server(command, lambda: listens(port)) as process:
        yield S3Server("moto", f"http://127.0.0.1:{port}", pid=process.pid)


@contextlib.contextmanager
def rclone() -> Iterator[S3Server]:
    """Serves a folder and ignores every condition: it must be noticed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        found = S3Server(
            "rclone", f"http://127.0.0.1:{port}", honours_conditions=False, strict_auth=True
        )
        command = [
            _program("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}",
            "--auth-key", f"{found.key},{found.secret}", folder,
        ]  # fmt: skip
        with server(command, lambda: listens(port)) as process:
            yield replace(found, pid=process.pid)


def has_seaweedfs() -> bool:
    """Whether the optional server is installed in this environment."""
    return (Path(sys.executable).parent / "weed").exists()


SEAWEEDFS_PORTS = 8
"""How many it listens on."""


@contextlib.contextmanager
def seaweedfs(ports: Sequence[int] = (), folder: Path | None = None) -> Iterator[S3Server]:
    """A real object store, checked signatures included; one instance per machine."""
    chosen = list(ports) or [free_port() for _ in range(SEAWEEDFS_PORTS)]
    found = S3Server("seaweedfs", f"http://127.0.0.1:{chosen[0]}", strict_auth=True)
    with contextlib.ExitStack() as stack:
        where = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.mkdir(exist_ok=True)
        _let_in(found, where / "s3.json")
        # Not told, it takes 10,000 above the other port, which may be no port at all.
        internals = dict(zip(("master", "volume", "filer", "s3"), chosen[4:], strict=True))
        command = [
            _program("weed"), "server", f"-dir={where}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={chosen[1]}", f"-volume.port={chosen[2]}", f"-filer.port={chosen[3]}",
            "-master.volumeSizeLimitMB=256", "-volume.max=5000",
            "-master.volumePreallocate=false", "-s3", f"-s3.port={chosen[0]}",
            f"-s3.config={where}/s3.json",
            "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.localSocket={where}/s3.sock", f"-filer.localSocket={where}/filer.sock",
            *(f"-{part}.port.grpc={internal}" for part, internal in internals.items()),
        ]  # fmt: skip

        def ready() -> bool:
            return listens(chosen[0]) and found.client().list_buckets() is not None

        try:
            with server(command, ready) as process:
                yield replace(found, pid=process.pid)
        finally:
            for part, internal in internals.items():  # it forgets these when it is stopped
                Path(f"/tmp/seaweedfs-{part}-grpc-{internal}.sock").unlink(missing_ok=True)


def _let_in(who: S3Server, config: Path) -> None:
    """Writes the identities that SeaweedFS checks signatures against."""
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": who.key, "secretKey": who.secret}]
    identity = {"name": "test", "credentials": credentials, "actions": actions}
    config.write_text(json.dumps({"identities": [identity]}))
