"""An object store under load: holdfast beside the official client and TensorStore's raw driver.

The server runs on the same machine and takes its share of the cores, so only the ratios mean
something, and they flatter nobody: every contender sends the same bytes, 32 requests at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from integration.benchmarks import workloads
from integration.benchmarks.measure import Figure, timed
from integration.servers import s3

CONCURRENCY = 32
PART_BYTES = 16 << 20


@dataclass(frozen=True)
class _Contender:
    name: str
    save: Callable[[str, Any], None]
    load: Callable[[str, Any], Any]


def _holdfast(server: s3.S3Server) -> _Contender:
    import jax

    import holdfast as hf

    def abstract(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    del server  # found through the environment, as by a job
    return _Contender(
        "holdfast",
        hf.save,
        lambda url, tree: jax.block_until_ready(hf.load(url, abstract(tree))),
    )


def _pieces(tree: Any) -> list[memoryview]:
    whole = [memoryview(np.asarray(leaf)).cast("B") for leaf in tree.values()]
    return [one[at : at + PART_BYTES] for one in whole for at in range(0, len(one), PART_BYTES)]


def _boto3(server: s3.S3Server) -> _Contender:
    """One object per leaf, in parts, all parts at once."""
    from boto3.s3.transfer import TransferConfig

    client = server.client()
    leaves_at_once = 4
    config = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=CONCURRENCY // leaves_at_once,
    )

    def place(url: str, name: str) -> tuple[str, str]:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/{name}"

    def save(url: str, tree: Any) -> None:
        def one(name: str) -> None:
            source = io.BytesIO(memoryview(np.asarray(tree[name])).cast("B"))
            client.upload_fileobj(source, *place(url, name), Config=config)

        with ThreadPoolExecutor(leaves_at_once) as pool:
            list(pool.map(one, tree))

    def load(url: str, tree: Any) -> Any:
        def one(name: str) -> bytes:
            target = io.BytesIO()
            client.download_fileobj(*place(url, name), target, Config=config)
            return target.getvalue()

        with ThreadPoolExecutor(leaves_at_once) as pool:
            return list(pool.map(one, tree))

    return _Contender("boto3 multipart", save, load)


def _tensorstore(server: s3.S3Server) -> _Contender:
    """One object per part; nothing is indexed, checked or committed."""
    import tensorstore as ts

    limits = {"s3_request_concurrency": {"limit": CONCURRENCY}}

    def opened(url: str) -> Any:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        spec = {
            "driver": "s3", "bucket": bucket, "path": f"{prefix}/", "endpoint": server.endpoint,
            "aws_region": "us-east-1", "aws_credentials": {"type": "environment"},
        }  # fmt: skip
        return ts.KvStore.open(spec, context=ts.Context(limits)).result()

    def save(url: str, tree: Any) -> None:
        store = opened(url)
        writes = [store.write(f"{n}", bytes(piece)) for n, piece in enumerate(_pieces(tree))]
        for write in writes:
            write.result()

    def load(url: str, tree: Any) -> Any:
        store = opened(url)
        reads = [store.read(f"{n}") for n in range(len(_pieces(tree)))]
        return [read.result().value for read in reads]

    return _Contender("TensorStore, raw", save, load)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def object_store(folder: Path, repetitions: int) -> list[Figure]:
    """Save and load `big` on ministack and, where it is installed, on SeaweedFS."""
    del folder  # the servers have their own
    started = [s3.ministack, *([s3.seaweedfs] if s3.has_seaweedfs() else [])]
    return [figure for one in started for figure in _on(one, repetitions)]


def _on(started: Callable[[], Any], repetitions: int) -> list[Figure]:
    """The contenders in turn on one server, the first turn dropped."""
    tree = workloads.big()
    for leaf in tree.values():
        np.asarray(leaf)  # on the host before anyone is timed
    seen: dict[tuple[str, str], list[float]] = {}
    with started() as server, _environment(server.variables | {"AWS_REGION": "us-east-1"}):
        bucket = server.make_bucket(f"bench-{uuid.uuid4().hex[:8]}")
        order = [make(server) for make in (_holdfast, _boto3, _tensorstore)]
        for turn in range(repetitions + 1):
            shift = turn % len(order)
            for number, one in enumerate(order[shift:] + order[:shift]):
                url = f"s3://{bucket}/{turn}/{number}"
                seconds = {
                    "save": timed(lambda o=one, u=url: o.save(u, tree)),
                    "load": timed(lambda o=one, u=url: o.load(u, tree)),
                }
                for what, value in seconds.items() if turn else ():
                    seen.setdefault((f"{what} big on {server.name}", one.name), []).append(value)
                _empty(server, bucket)
    return [Figure(what, name, "s", values) for (what, name), values in seen.items()]


def _empty(server: s3.S3Server, bucket: str) -> None:
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=found["Key"])
