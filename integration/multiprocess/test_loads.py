"""What the processes of a job read, and what they get."""


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
