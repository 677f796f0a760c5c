"""A run of a whole job on object storage, chosen by its URL and the environment."""

import holdfast as hf
from integration.multiprocess import run_parts


def test_a_job_trains_on_object_storage_and_one_process_goes_on(run, object_store):
    folder = f"{object_store.root}/run"
    first, second = run(2, "run_parts.on_a_store", folder, devices=1)
    assert "told" in first, first
    assert "RemoteProcessError" in first["told"]["error"]
    assert "no space left for the write" in first["told"]["message"]
    assert "RemoteProcessError" not in second["told"]["error"]
    for said in (first, second):
        assert said["again"] is True
        assert "StepAlreadyExistsError" in said["taken"]["error"]
        assert said["loaded"] is True
        assert said["known"] == [3, 4]
    assert run_parts.resume(folder) == [4, 40, True, 1]
    assert all(hf.verify(f"{folder}/{step}").ok for step in (4, 5))
