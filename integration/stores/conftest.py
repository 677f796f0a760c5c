"""A store behind a fault proxy, of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from holdfast_gcs import GcsBackend, detection
from holdfast_s3 import S3Backend, probe
from holdfast_storage.backend import StorageBackend
from integration.conftest import OBJECT_STORES
from integration.servers.proxy import FaultProxy, running_proxy


@dataclass(frozen=True)
class FaultyStore:
    """A bucket reached directly and through a fault proxy.

    Attributes:
        kind: Of the store.
        proxy: Injects the faults and counts.
        plain: A backend on the store itself.
        behind: Makes backends that go through the proxy.
    """

    kind: str
    proxy: FaultProxy
    plain: StorageBackend
    behind: Callable[..., StorageBackend]


@pytest.fixture(params=OBJECT_STORES)
async def faulty_store(
    request: pytest.FixtureRequest, bucket_name: str, short_pauses: None
) -> AsyncIterator[FaultyStore]:
    """Each kind of object store; nothing about it is known from an earlier test."""
    probe._answers.clear()
    detection._answers.clear()
    s3 = request.param == "s3"
    server = request.getfixturevalue("ministack" if s3 else "gcs")
    if s3:
        server.make_bucket(bucket_name)
    else:
        server.make_bucket(bucket_name, hierarchical="hier" in request.param)
        server.polls = 0  # a rename is done at the first look: hundreds are made
    made = []

    def opened(endpoint: str, **options: Any) -> StorageBackend:
        if s3:
            made.append(
                S3Backend(
                    f"s3://{bucket_name}/run", server.options | {"endpoint_url": endpoint} | options
                )
            )
        else:
            made.append(GcsBackend(f"gs://{bucket_name}/run", {"endpoint_url": endpoint} | options))
        return made[-1]

    direct = server.endpoint if s3 else server.url
    with running_proxy(direct) as proxy:
        yield FaultyStore(
            request.param, proxy, opened(direct), lambda **options: opened(proxy.url, **options)
        )
    for backend in made:
        await backend.aclose()
