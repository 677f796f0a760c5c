"""Orbax loads what holdfast exports, with its own reader of the format."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import holdfast as hf

STATE = {
    "embed": jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3),
    "layers": [{"w": np.arange(6.0, dtype=np.float32)}, {"w": np.ones(5, np.int32)}],
}
NAMES = {"embed": STATE["embed"], "layers.0.w": STATE["layers"][0]["w"]}
NAMES["layers.1.w"] = STATE["layers"][1]["w"]


@pytest.mark.parametrize("shard", [24, 10_000])
def test_orbax_loads_an_export(shard, tmp_path):
    hf.save(tmp_path / "c", STATE)
    hf.export_safetensors(tmp_path / "c", tmp_path / "out", max_shard_bytes=shard)
    context = ocp.Context()
    context.checkpoint_layout = "safetensors"
    with context:
        whole = ocp.load(tmp_path / "out")
        described = ocp.metadata(tmp_path / "out").metadata
        target = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in NAMES.items()}
        aimed = ocp.load(tmp_path / "out", target)
    ours = hf.load(tmp_path / "out")
    assert sorted(whole) == sorted(described) == sorted(aimed) == sorted(ours) == sorted(NAMES)
    for name, array in NAMES.items():
        for found in (whole[name], aimed[name], ours[name]):
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)
