"""What the processes of a job read, and what they get."""

import jax
import pytest

import holdfast as hf


@pytest.mark.slow
def test_four_two_one_and_eight_processes_hand_a_tree_on_in_every_layout(run, tmp_path):
    jobs = [(4, [4, 2], 0, 2), (2, [2, 2], 1, 2), (1, [1, 2], 2, 2), (8, [2, 2, 2], 3, 1)]
    jobs.append((4, [2, 2, 2], 0, 2))  # and back
    source = None
    for number, (count, mesh, way, devices) in enumerate(jobs):
        place = str(tmp_path / str(number))
        said = run(count, "loads.relay", source, place, mesh, way, devices=devices)
        assert said == ["relayed" if source else "saved"] * count, said
        assert hf.verify(place).ok
        source = place
    alone = hf.load(source)  # without a target, in a process that has one device
    assert alone["number"].sharding.device_set <= set(jax.devices())
    assert alone["words"] == {"name": "adam", "step": 7}
    assert alone["many keys"].shape == (8, 4)


def test_one_replica_reads_and_the_others_get_every_bit_over_the_devices(run, tmp_path):
    found = run(4, "loads.once", str(tmp_path / "checkpoint"), devices=1)
    for process, said in enumerate(found):
        for primary in (0, 1):
            replicated = [
                leaf
                for leaf in said["read"][str(primary)]
                if "along" not in leaf and "across" not in leaf and "host" not in leaf
            ]
            assert bool(replicated) == (process // 2 == primary), (process, replicated)
        assert any("along" in leaf for leaf in said["read"]["0"])
        assert ("RemoteProcessError" in said["fails"]["error"]) == (process > 0), said["fails"]
        assert "OSError" in said["fails"]["error"]
        assert "the disk of process 0 is gone" in said["fails"]["message"]
        assert ("RemoteProcessError" in said["fits not"]["error"]) == (process != 1)
        assert "['odd']" in said["fits not"]["message"], said["fits not"]
        assert "DisagreementError" in said["differs"]["error"], said["differs"]
        assert "primary_replica_id=2" in said["absent"]["message"]
        (warning,) = said["warned"]  # the load after it, of which one replica reads, says nothing
        assert "none lies in replicas along axis 5" in warning


@pytest.mark.slow
def test_a_process_reads_the_chunks_that_its_devices_touch_and_nothing_where_it_has_none(
    run, tmp_path
):
    found = run(3, "loads.partly", str(tmp_path / "checkpoint"))
    whole, index = 4 << 20, 64 << 10  # of the array; more than the databases' indexes take
    for process, said in enumerate(found):
        assert "error" not in said, said
        expected = {
            "rows": (whole // 2, whole // 2, 0),
            "columns": (whole // 2, whole // 2, 0),
            "whole": (whole, whole, 0),
            "first": (whole, 0, 0),
            "whole first": (whole, 0, 0),
        }
        for name, sizes in expected.items():
            assert sizes[process] <= said["read"][name] < sizes[process] + index, (name, said)
        shards = 2 if process == 0 else 0
        assert said["shards"] == {"padded": shards, "cast": shards, "keys": shards}
        assert said["own"]  # on all processes alike, though one of them has the saved device
