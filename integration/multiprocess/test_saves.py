"""One checkpoint from all processes of a job, loaded by jobs of another size."""

import holdfast as hf


def test_without_a_target_everything_comes_back_where_it_was_or_where_it_can_be(run, tmp_path):
    place = str(tmp_path / "checkpoint")
    run(2, "save", place, [2, 2])
    again = run(2, "load_as_saved", place)
    assert "'x': 2, 'y': 2" in again[0]["value"], again
    assert [said["value"] for said in again] == [again[0]["value"]] * 2
    (alone,) = run(1, "load_as_saved", place, devices=1)
    assert "SingleDeviceSharding" in alone["value"]
    for said in run(2, "load_as_saved", place, devices=1):
        assert "PlacementError" in said["error"], said
        assert "['arrays']['rows']" in said["message"]
        assert "fallback_sharding" in said["message"]


def test_orbax_loads_in_several_processes_what_several_saved_and_the_reverse(run, tmp_path):
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    run(2, "save", ours, [2, 2], None, "empty")  # no Orbax reads an array of zero size
    assert run(2, "orbax_load", ours, [4]) == ["loaded"] * 2
    assert run(2, "orbax_save", theirs, [2, 2]) == ["saved"] * 2
    assert run(2, "load_from_orbax", theirs, [4]) == ["loaded"] * 2


def test_what_all_processes_have_is_divided_among_them_or_written_by_the_first(run, tmp_path):
    assert run(2, "save_replicated", str(tmp_path / "w")) == ["saved"] * 2

    def written(place):
        folders = [tmp_path / place / "state" / f"ocdbt.process_{n}" for n in range(2)]
        return [sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in folders]

    one, other = written("w-divided")
    assert 19 << 20 < one + other < 20 << 20
    assert abs(one - other) < 2 << 20
    first, second = written("w-by-one")
    assert first > 19 << 20
    assert second < 1 << 16
    assert hf.verify(tmp_path / "w-divided").ok
