"""What is saved and loaded: trees of random, incompressible float32."""

from __future__ import annotations

from typing import Any

import numpy as np

MIB = 1 << 20


def big() -> dict[str, Any]:
    """4 arrays of 128 MiB."""
    return {f"w{n}": _random((8192, 4096), n) for n in range(4)}


def abstract_big() -> dict[str, Any]:
    """What `big` looks like, without its memory."""
    import jax

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    one = jax.ShapeDtypeStruct((8192, 4096), np.float32, sharding=place)
    return {f"w{n}": one for n in range(4)}


def llm() -> dict[str, Any]:
    """240 leaves, 680 MB: layers with large matrices and small vectors."""
    tree: dict[str, Any] = {}
    for layer in range(40):
        tree[f"layer_{layer}"] = {
            "attention": {"qkv": _random((1024, 2048), layer), "out": _random((512, 1024), layer)},
            "mlp": {"up": _random((1024, 1100), layer), "down": _random((512, 1000), layer)},
            "norm": {"scale": _random((1024,), layer), "bias": _random((1024,), layer)},
        }
    return tree


def many() -> dict[str, Any]:
    """5,000 leaves, 2.6 MB."""
    return {f"leaf_{n}": _random((130,), n) for n in range(5000)}


def _random(shape: tuple[int, ...], seed: int) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(np.random.default_rng(seed).random(shape, np.float32))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


TREES = {"big": big, "llm": llm, "many": many}
