"""Following a run on every object store, while its steps are collected."""

import holdfast as hf

keep = hf.training.preservation_policies.LatestN(1)


def test_a_run_in_a_bucket_is_followed_and_what_is_read_stays(object_store):
    url = f"{object_store.root}/followed"
    with hf.checkpoint_utils.wait_for_new_checkpoint(url, timeout=0) as nothing:
        assert nothing == -1
    seen = []
    with hf.training.Checkpointer(url, preservation_policy=keep) as run:
        run.save(1, {"step": 1})
        for step in hf.checkpoint_utils.checkpoints_iterator(url, timeout=0):
            if step < 3:
                for number in (step + 1, step + 2):
                    run.save(number, {"step": number})
                run.wait()
                assert [entry.step for entry in run.checkpoints] == [step, step + 2]
            assert hf.training.Checkpointer(url).load(step) == {"step": step}
            seen.append(step)
        run.save(4, {"step": 4})
        run.wait()
        assert [entry.step for entry in run.checkpoints] == [4]
    assert seen == [1, 3]
