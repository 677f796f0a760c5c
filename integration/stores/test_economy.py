"""Requests, counted by a proxy between holdfast and the store: the table is kept by a test.

The counts are upper bounds that one may lower; docs/backends/index.md shows them.
"""

import re
from pathlib import Path

import numpy as np
import pytest

import holdfast as hf
from holdfast_gcs import settings as gcs_settings
from integration.servers.proxy import running_proxy

TABLE = Path(__file__).resolve().parents[2] / "docs/backends/index.md"
LEAVES = [1, 100, 5000]


@pytest.fixture(params=["S3", "GCS flat", "GCS hierarchical"])
def counted(request, ministack, gcs, bucket_name, monkeypatch):
    """The kind of store, a place on it, and the proxy that counts."""
    upstream = ministack.endpoint if request.param == "S3" else gcs.url
    if request.param == "S3":
        ministack.make_bucket(bucket_name)
    else:
        gcs.make_bucket(bucket_name, hierarchical="hier" in request.param)
    with running_proxy(upstream) as proxy:
        if request.param == "S3":
            for name, value in (ministack.variables | {"AWS_ENDPOINT_URL": proxy.url}).items():
                monkeypatch.setenv(name, value)
            yield request.param, f"s3://{bucket_name}/team", proxy
        else:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            yield request.param, f"gs://{bucket_name}/team", proxy
            gcs_settings.forget()


def state(leaves):
    return {f"leaf{n}": np.full(4, n, np.float32) for n in range(leaves)}


def measure(root, proxy, leaves):
    """Requests of a save and a load, the writing ones among the save's, of opening and listing."""
    hf.save(f"{root}/warm{leaves}", state(1))  # the probe and the layout are asked once per process
    proxy.clear()
    hf.save(f"{root}/c{leaves}", state(leaves))
    saved = [line for line in proxy.requests if "POST /oauth" not in line]
    proxy.clear()
    found = hf.load(f"{root}/c{leaves}")
    assert found[f"leaf{leaves - 1}"][0] == leaves - 1
    loaded = list(proxy.requests)
    objects = len([line for line in saved if re.match(r"(PUT|POST) ", line)])
    with hf.training.Checkpointer(f"{root}/run{leaves}") as run:
        run.save(1, state(leaves))
    proxy.clear()
    again = hf.training.Checkpointer(f"{root}/run{leaves}")
    assert again.latest.step == 1
    opened = len(proxy.requests)
    proxy.clear()
    again.reload()
    assert [entry.step for entry in again.checkpoints] == [1]
    return len(saved), len(loaded), objects, opened, len(proxy.requests)


@pytest.mark.slow
def test_requests_stay_within_the_table(counted):
    name, root, proxy = counted
    for leaves in LEAVES:
        counts = measure(root, proxy, leaves)
        saved, loaded, objects, *_ = counts
        print(name, leaves, *counts, sep=" | ")
        row = re.search(
            rf"^\| {name} \| {leaves:,} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$",
            TABLE.read_text(),
            re.MULTILINE,
        )
        assert row, f"no row for {name}, {leaves}: {counts}"
        allowed = tuple(map(int, row.groups()))
        assert all(count <= most for count, most in zip(counts, allowed, strict=True)), counts
        assert saved < 60, "\n".join(proxy.requests)
        assert loaded < 30
        assert objects < 25


def test_a_read_is_one_request(counted):
    from holdfast_storage import get_loop, open_backend

    _, root, proxy = counted
    backend = open_backend(root)
    get_loop().run(backend.put("k", b"x"))
    proxy.clear()
    assert get_loop().run(backend.get("k")) == b"x"
    assert len(proxy.requests) == 1


def test_a_run_of_many_steps_opens_with_two_listings(counted):
    name, root, proxy = counted
    from holdfast_storage import get_loop, open_backend

    with hf.training.Checkpointer(f"{root}/run") as checkpointer:
        for step in (1, 300):
            checkpointer.save(step, state(1))
    backend = open_backend(f"{root}/run")

    async def many():
        record = await backend.get("1/_COMMIT.json")
        for step in range(2, 300):
            await backend.put(f"{step}/_COMMIT.json", record)
            await backend.put(f"_committed/{step}", b"")

    get_loop().run(many())
    proxy.clear()
    opened = hf.training.Checkpointer(f"{root}/run")
    assert len(opened.checkpoints) == 300
    assert opened.latest.step == 300
    assert len(proxy.requests) == 5, "\n".join(proxy.requests)
    proxy.clear()
    assert opened.checkpoints[100].time.year > 2000
    assert len(proxy.requests) == 1, name
    proxy.clear()
    assert opened.load()["leaf0"][0] == 0
    assert len(proxy.requests) <= 12
    assert not any("/100/" in line for line in proxy.requests)
