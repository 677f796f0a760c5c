"""Backends on our server, and what may stand between the two."""

import contextlib

import pytest

from holdfast_gcs import GcsBackend, detection
from integration.servers.answering import answering as always
from integration.servers.proxy import running_proxy


@pytest.fixture(autouse=True)
def ask_again():
    """Each test asks its own server what its buckets are."""
    detection._answers.clear()


@pytest.fixture
async def opened(gcs):
    """Opens backends, and closes them after the test."""
    made = []

    def make(bucket, **options):
        made.append(GcsBackend(f"gs://{bucket}/run", {"endpoint_url": gcs.url} | options))
        return made[-1]

    yield make
    for backend in made:
        await backend.aclose()


@pytest.fixture
def proxied(gcs):
    """A fault proxy in front of the server."""
    with running_proxy(gcs.url) as proxy:
        yield proxy


@pytest.fixture
def uploads_proxied(gcs, proxied, monkeypatch):
    """Upload sessions go through the proxy too: the service says where they are."""
    monkeypatch.setattr(gcs, "url", proxied.url)
    return proxied


@pytest.fixture
def flat(gcs, bucket_name):
    return gcs.make_bucket(bucket_name)


@pytest.fixture
def hierarchical(gcs, bucket_name):
    return gcs.make_bucket(bucket_name, hierarchical=True)


@pytest.fixture
def answering():
    """Starts servers that give every request the same answer."""
    with contextlib.ExitStack() as servers:
        yield lambda status, body, headers=(): servers.enter_context(always(status, body, headers))
