"""One of two processes that save a checkpoint together, with Orbax.

python -m integration.interop.orbax_two_processes ADDRESS PROCESS FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
import orbax.checkpoint as ocp0
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from integration.interop.trees import random_array

HOST = {
    "rows": random_array(1, (8, 400)),
    "columns": random_array(2, (400, 8)),
    "whole": random_array(3, (8, 9)),
}
SPECS = {"rows": ("x",), "columns": (None, "x"), "whole": ()}


def main(address: str, process: int, folder: Path) -> None:
    """Saves the same tree with v1 and with v0, each process its shards."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))

    def place(name: str) -> jax.Array:
        sharding = NamedSharding(mesh, PartitionSpec(*SPECS[name]))
        return jax.make_array_from_callback(HOST[name].shape, sharding, lambda i: HOST[name][i])

    tree = {name: place(name) for name in HOST} | {"step": 4}
    ocp.save(folder / "v1", tree)
    with ocp0.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "v0", tree)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
