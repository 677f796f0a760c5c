"""Host memory of a save, measured in processes of their own."""

import json
import subprocess
import sys

import pytest

SAVE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
import holdfast as hf

bound, compression, folder = json.loads(sys.argv[1])

def status(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1]) / 1024

def context(bound):
    saving = hf.options.ArraySaveOptions(bytes_in_flight=bound, compression=compression)
    return hf.Context(
        array=hf.options.ArrayOptions(saving=saving),
        memory=hf.options.MemoryOptions(deepcopy_host_arrays=False),
    )

random = np.random.default_rng(1)
arrays = [random.integers(0, 255, (8 << 20,), np.uint8) for _ in range(24)]
tree = {str(n): jnp.asarray(array) if n % 2 else array for n, array in enumerate(arrays)}
del arrays
hf.save(folder + "/small", {"w": np.ones(8)}, context=context(bound))  # what is loaded once
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
hf.save(folder + "/large", tree, context=context(bound))
print(json.dumps(status("VmHWM") - before))
"""

MANY = """
import json, sys
import numpy as np, jax.numpy as jnp
import holdfast as hf

def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

tree = {"w": jnp.ones((256, 1024)), "n": np.ones((256, 1024), np.float32), "step": 7}
sizes = []
for n in range(60):
    hf.save(f"{sys.argv[1]}/c", tree, overwrite=True)
    if n in (9, 59):
        sizes.append(resident())
print(json.dumps(sizes[1] - sizes[0]))
"""


def measured(code, argument):
    """What a process of its own printed, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", code, argument],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_save_takes_no_more_memory_than_it_may_have_in_flight(tmp_path, compression):
    bound = 24  # of 192 MiB
    # Without the bound a compressed save takes the whole 192 MiB again.
    grown = measured(SAVE, json.dumps([bound << 20, compression, str(tmp_path)]))
    assert grown < 4 * bound, grown


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fifty_saves_take_no_more_memory_than_ten(tmp_path):
    assert measured(MANY, str(tmp_path)) < 16  # a state of 2 MiB is saved fifty times
