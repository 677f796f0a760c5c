"""An array that cannot be copied or written is named by the error."""

import jax.numpy as jnp
import numpy as np
import pytest

from holdfast_checkpointer.arrays.options import ArraySaveOptions
from holdfast_checkpointer.arrays.snapshot import snapshot_all
from holdfast_checkpointer.arrays.write import write_arrays
from holdfast_checkpointer.multihost.errors import FailureReport
from holdfast_local.backend import LocalBackend
from holdfast_storage.errors import StorageError


async def test_a_write_that_storage_refuses_names_the_arrays(tmp_path):
    (tmp_path / "state").write_bytes(b"no folder")
    arrays = snapshot_all([("params.w", np.arange(3)), ("params.z", np.arange(3))])
    target = LocalBackend(str(tmp_path)).kv_target("state")
    with pytest.raises(StorageError, match=r"writing arrays failed: .*params\.w to params\.z"):
        await write_arrays(target, arrays, ArraySaveOptions())


def test_an_array_that_a_step_has_taken_is_named_with_the_phase():
    taken = jnp.arange(3)
    taken.delete()
    with pytest.raises(RuntimeError, match="deleted") as caught:
        snapshot_all([("params.w", taken)])
    report = FailureReport.of(caught.value, 3, "the validation")
    assert report.phase == "the copy to the host"
    assert "(leaf 'params.w', during the copy to the host)" in report.message
