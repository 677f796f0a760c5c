"""The memory of a save is bounded in every process of a job, and nothing stays of many."""

MIB = 1 << 20


def test_memory_is_bounded_in_each_process_and_does_not_grow_with_the_number_of_saves(
    run, tmp_path
):
    for said in run(2, "memory.all_of_it", str(tmp_path), 16 * MIB, 50):
        large = said["bounded"]
        assert large["own"] == 128 * MIB
        assert large["grew"] < 64 * MIB, said
        early, late = said["repeated"][1], said["repeated"][-1]
        assert late["rss"] - early["rss"] < 24 * MIB, said
        assert late["keys"] <= early["keys"] + 4, said
        assert late["threads"] <= early["threads"] + 8, said
        assert late["python threads"] < 60, said
