"""What a process of a job holds while it saves, and what stays of many saves."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.multihost import jax_service
from holdfast_storage.loop import get_loop
from integration.multiprocess.parts import global_array, mesh_of

MIB = 1 << 20


def status(field: str) -> int:
    """A field of this process's status: bytes, or a number."""
    text = Path("/proc/self/status").read_text()
    words = next(line for line in text.splitlines() if line.startswith(f"{field}:")).split()
    return int(words[1]) * (1024 if words[-1] == "kB" else 1)


def bounded(folder: str, in_flight: int) -> Any:
    """By how much memory grows, at its highest, while a large tree is compressed and saved."""
    import holdfast as hf

    mesh = mesh_of([jax.device_count()])
    random = np.random.default_rng(0)
    shape = (jax.device_count() * 8, MIB)
    value = random.integers(0, 256, shape, np.uint8)
    tree = {f"w{n}": global_array(value, mesh, "x") for n in range(8)}
    del value
    saving = hf.options.ArraySaveOptions(
        compression="zstd", bytes_in_flight=in_flight, chunk_bytes=4 * MIB
    )
    context = hf.Context(array=hf.options.ArrayOptions(saving=saving))
    hf.save(f"{folder}/warm", {"w": global_array(np.ones((8, 8)), mesh, "x")}, context=context)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    hf.save(f"{folder}/large", tree, context=context)
    own = sum(s.data.nbytes for leaf in tree.values() for s in leaf.addressable_shards)
    return {"grew": status("VmHWM") - before, "own": own}


def repeated(folder: str, times: int) -> Any:
    """What stays after some saves, and after many: memory, threads and keys."""
    import holdfast as hf

    mesh = mesh_of([jax.device_count()])
    tree = {f"w{n}": global_array(np.ones((64, 1024), np.float32), mesh, "x") for n in range(8)}
    keep = hf.training.preservation_policies.LatestN(2)
    seen = []
    with hf.training.Checkpointer(f"{folder}/run", preservation_policy=keep) as run:
        for step in range(times):
            run.save(step, tree)
            hf.save(f"{folder}/one", tree, overwrite=True)
            if step % 10 == 9:
                gc.collect()
                seen.append(
                    {
                        "rss": status("VmRSS"),
                        "python threads": threading.active_count(),
                        "threads": status("Threads"),
                        "keys": len(get_loop().run(jax_service.JaxService().list("holdfast"))),
                    }
                )
    return seen


def all_of_it(folder: str, in_flight: int, times: int) -> Any:
    """Both, in one job."""
    return {"bounded": bounded(folder, in_flight), "repeated": repeated(folder, times)}
