"""Two processes load a checkpoint by rows: each reads its half, whoever wrote it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf
from integration.interop.orbax_writers import StorageOptions, v1
from integration.interop.reading_process import content

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/io").exists(),
    reason="this system does not count the bytes that a process reads",
)


def run(folder):
    """What each of two processes printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "integration.interop.reading_process", address]
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(process), folder],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for process in range(2)
        ]
        stack.callback(lambda: [reader.kill() for reader in readers])
        said = [reader.communicate(timeout=240) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_each_process_reads_the_chunks_of_its_devices_and_no_others(tmp_path):
    tree = {"w": jnp.asarray(content()), "other": jnp.asarray(content())}
    saving = hf.options.ArraySaveOptions(chunk_bytes=1 << 18)
    hf.save(
        tmp_path / "ours", tree, context=hf.Context(array=hf.options.ArrayOptions(saving=saving))
    )
    write = v1(storage_options=StorageOptions(chunk_byte_size=1 << 18), use_compression=False)
    write(tmp_path / "orbax", tree)
    for process in run(tmp_path):
        for name in ("ours", "orbax"):
            held, read = process[name]["held"], process[name]["read"]
            assert held == content().nbytes // 2
            assert held <= read <= 1.1 * held, (name, process)


def test_orbaxs_database_is_read_once_for_many_small_arrays(tmp_path):
    rng = np.random.default_rng(3)
    tree = {str(i): rng.random(50, np.float32) for i in range(300)}
    v1()(tmp_path / "c", tree)
    size = sum(p.stat().st_size for p in (tmp_path / "c/state").rglob("*") if p.is_file())

    def counted():
        text = Path("/proc/self/io").read_text()
        return int(text.split("rchar: ")[1].split()[0])

    hf.load(tmp_path / "c")
    before = counted()
    found = hf.load(tmp_path / "c")
    assert counted() - before <= 2 * size
    np.testing.assert_array_equal(found["7"], tree["7"])


def test_zeros_that_older_orbax_left_out_are_read_as_zeros(tmp_path):
    array = np.arange(64, dtype=np.float32).reshape(8, 8)
    saving = StorageOptions(chunk_byte_size=128)
    v1(storage_options=saving, use_ocdbt=False, use_compression=False)(tmp_path / "c", {"a": array})
    chunks = sorted(p for p in (tmp_path / "c/state/a").rglob("*") if p.is_file())
    chunks = [p for p in chunks if "zarr" not in p.name]
    chunks[0].unlink()
    with pytest.raises(hf.errors.DamagedCheckpointError):
        hf.load(tmp_path / "c")
    loading = hf.options.ArrayLoadOptions(raise_array_data_missing_error=False)
    asked = hf.Context(array=hf.options.ArrayOptions(loading=loading))
    metadata = tmp_path / "c/state/_METADATA"
    zeros = hf.load(tmp_path / "c", context=asked)["a"]
    assert (zeros == 0).sum() > 1
    assert ((zeros == array) | (zeros == 0)).all()
    text = metadata.read_text()
    assert '"store_array_data_equal_to_fill_value": true' in text
    metadata.write_text(
        text.replace('fill_value": true', 'fill_value": false')
    )  # as if it had never been written
    np.testing.assert_array_equal(hf.load(tmp_path / "c")["a"], zeros)
