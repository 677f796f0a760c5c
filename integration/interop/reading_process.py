"""One of two processes that load a checkpoint together, and count what they read.

python -m integration.interop.reading_process ADDRESS PROCESS FOLDER
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import holdfast as hf

SHAPE = (1024, 1024)


def content() -> np.ndarray[Any, Any]:
    """What the array holds."""
    return np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)


def counted() -> int:
    """The bytes that this process has read."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found.group(1))


def main(address: str, process: int, folder: Path) -> None:
    """Loads each checkpoint by rows and prints what was read and what this process holds."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    target = jax.ShapeDtypeStruct(
        SHAPE, np.float32, sharding=NamedSharding(mesh, PartitionSpec("x"))
    )
    partial = hf.options.PyTreeOptions(loading=hf.options.PyTreeLoadOptions(partial_load=True))
    context = hf.Context(pytree=partial)
    results = {}
    for name in ("ours", "orbax"):
        reads = []
        for wanted in ({}, {}, {"w": target}, {"w": target}):
            before = counted()
            found = hf.load(folder / name, wanted, context=context)
            reads.append(counted() - before)
        shards = found["w"].addressable_shards
        for shard in shards:
            np.testing.assert_array_equal(shard.data, content()[shard.index])
        held = sum(shard.data.nbytes for shard in shards)
        results[name] = {"held": held, "read": reads[3] - reads[1]}
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
