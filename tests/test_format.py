"""A reader written from docs/format/v1.md alone, without holdfast, reads what holdfast writes."""

import base64
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import xxhash

import holdfast as hf


def digest(data):
    return "xxh3_64:" + xxhash.xxh3_64_hexdigest(data)


def open_whole(final):
    """Sections 2, 2.1 and 2.2: the data of a committed and whole checkpoint."""
    record = json.loads((final / "_COMMIT.json").read_bytes())
    assert (record["format_version"], record["state"]) == (1, "committed")
    data = final / record["data"]
    manifest = (data / "_MANIFEST.jsonl").read_bytes()
    assert digest(manifest) == record["manifest_digest"]
    header, *lines = map(json.loads, manifest.splitlines())
    assert header["files"] == len(lines)
    assert header["bytes"] == sum(line["size"] for line in lines)
    assert [line["path"] for line in lines] == sorted(line["path"] for line in lines)
    for line in lines:
        content = (data / line["path"]).read_bytes()
        assert len(content) == line["size"]
        assert line["digest"] in (None, digest(content))
    return data


def read_array(item, leaf):
    """Section 4.3, every chunk compared with its digest."""
    dtype, shape, chunk_shape, digests = json.loads((item / "_DIGESTS/process_0").read_bytes())[
        "arrays"
    ][leaf["name"]]
    assert (shape, chunk_shape) == (leaf["shape"], leaf["chunk_shape"])
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}
    store = ts.open({"driver": "zarr3", "kvstore": base | {"path": leaf["name"] + "/"}}).result()
    array = store.read().result()
    assert array.dtype.name == dtype
    for index, stored in digests.items():
        corner = [int(i) * n for i, n in zip(index.split("."), chunk_shape, strict=True)]
        window = tuple(slice(c, c + n) for c, n in zip(corner, chunk_shape, strict=True))
        assert digest(np.ascontiguousarray(array[window]).tobytes()) == stored
    grid = [-(-size // chunk) for size, chunk in zip(shape, chunk_shape, strict=True)]
    assert len(digests) == int(np.prod(grid))
    return array


def read_value(leaf):
    """Section 4.2."""
    value = leaf["value"]
    match leaf["leaf"]:
        case "int":
            return int(value, 16 if "x" in value else 10)
        case "float":
            return float.fromhex(value)
        case "complex":
            return complex(*map(float.fromhex, value))
        case "bytes":
            return base64.b64decode(value)
        case "np.generic":
            return np.frombuffer(base64.b64decode(value[1]), np.dtype(value[0]))[0]
        case _:
            return value


def read_node(item, node):
    """Section 4.1."""
    if "leaf" in node:
        return read_value(node) if "value" in node else read_array(item, node)
    children = [read_node(item, child) for child in node.get("children", ())]
    match node["node"]:
        case "none":
            return None
        case "dict":
            keys = [k if isinstance(k, str) else int(k[1]) for k in node["keys"]]
            return dict(zip(keys, children, strict=True))
        case "tuple":
            return tuple(children)
        case _:
            return children


def read_item(item):
    document = json.loads((item / "_TREE.json").read_bytes())
    assert document["format_version"] == 1
    return read_node(item, document["root"])


STATE = {
    "w": np.arange(60, dtype=np.float32).reshape(5, 12),
    "half": jnp.ones(3, jnp.bfloat16),
    "empty": np.zeros((0, 3)),
    "a.b": np.ones(2),
    "a": {"b": np.zeros(2)},
    "counts": {1: 2**3000, 2: -7},
    "scalars": [0.1, True, None, (1 - 2j, b"\x00\xff", "é"), np.float32(0.5)],
}


def same(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("chunk_bytes", [16 << 20, 64])
def test_the_named_layout(tmp_path, chunk_bytes):
    saving = hf.options.ArraySaveOptions(chunk_bytes=chunk_bytes)
    with hf.Context(array=hf.options.ArrayOptions(saving=saving)):
        hf.save(tmp_path / "one", STATE)
    data = open_whole(tmp_path / "one")
    assert {p.name for p in data.iterdir() if p.is_dir()} == {"state"}
    assert (data / "orbax.checkpoint").read_bytes() == b""
    found = read_item(data / "state")
    same(found, STATE)
    assert found["half"].dtype == ml_dtypes.bfloat16


def test_the_flat_layout(tmp_path):
    hf.Checkpointer(hf.PyTreeCheckpointHandler()).save(tmp_path / "one", STATE)
    data = open_whole(tmp_path / "one")
    step = json.loads((data / "_CHECKPOINT_METADATA").read_bytes())
    assert isinstance(step["item_handlers"], str)
    same(read_item(data), STATE)


def test_a_run(tmp_path):
    with hf.training.Checkpointer(tmp_path, custom_metadata={"of": "a test"}) as checkpointer:
        checkpointer.save(7, STATE, metrics={"loss": 0.5})
    root = json.loads((tmp_path / "metadata/_ROOT_METADATA").read_bytes())
    assert root["custom_metadata"] == {"of": "a test"}
    data = open_whole(tmp_path / "7")
    assert json.loads((data / "metrics/metrics").read_bytes()) == {"loss": 0.5}
    same(read_item(data / "state"), STATE)


def test_a_replaced_checkpoint_is_whole(tmp_path):
    hf.save(tmp_path / "one", {"n": 1})
    hf.save(tmp_path / "one", STATE, overwrite=True)
    same(read_item(open_whole(tmp_path / "one") / "state"), STATE)
