"""Trees of the real libraries: through holdfast, and exchanged with Orbax."""

import collections
import dataclasses
from typing import Any

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp0
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from orbax.checkpoint import v1 as ocp

import holdfast as hf

PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, "scale": 2.0}
PARAMS = jax.tree.map(jnp.asarray, PARAMS)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(self.norm(self.layers[0](x))))


@flax.struct.dataclass
class Struct:
    params: Any
    step: int
    name: str = flax.struct.field(pytree_node=False, default="static")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    weights: Any
    extra: Any


class WithKeys:
    def __init__(self, left, right):
        self.left, self.right = left, right


jax.tree_util.register_pytree_with_keys(
    WithKeys,
    lambda node: (
        (
            (jax.tree_util.GetAttrKey("left"), node.left),
            (jax.tree_util.GetAttrKey("right"), node.right),
        ),
        None,
    ),
    lambda _, children: WithKeys(*children),
)


def nnx_state():
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    return {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}


def optimizer_states():
    masked = optax.masked(optax.adam(1e-3), {"dense": True, "scale": False})
    labels = {"dense": "a", "scale": "b"}
    return {
        "adamw": optax.adamw(1e-3),
        "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
        "masked": masked,
        "multi_transform": optax.multi_transform(
            {"a": optax.adam(1e-3), "b": optax.set_to_zero()}, labels
        ),
        "inject": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
        "empty": optax.identity(),
    }


def equinox_arrays():
    model = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    return eqx.filter(model, eqx.is_array)


def train_state():
    return TrainState.create(apply_fn=len, params=PARAMS, tx=optax.adamw(1e-3))


CASES = {
    "nnx": nnx_state,
    **{
        f"optax {name}": lambda transform=transform: transform.init(PARAMS)
        for name, transform in optimizer_states().items()
    },
    "equinox": equinox_arrays,
    "frozen dict": lambda: FrozenDict(PARAMS),
    "struct": lambda: Struct(PARAMS, jnp.asarray(3)),
    "train state": train_state,
    "ordered dict": lambda: collections.OrderedDict(b=PARAMS, a=jnp.ones(2)),
    "default dict": lambda: collections.defaultdict(dict, a=PARAMS),
    "registered dataclass": lambda: Registered(PARAMS, {"n": np.arange(3)}),
    "with keys": lambda: WithKeys(PARAMS, [jnp.ones(2)]),
}


def abstract(tree):
    return jax.tree.map(
        lambda leaf: hf.arrays.to_shape_dtype_struct(leaf) if isinstance(leaf, jax.Array) else leaf,
        tree,
    )


def plain(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def same_leaves(found, saved):
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True))
    for a, b in pairs:
        assert getattr(a, "dtype", type(a)) == getattr(b, "dtype", type(b))
        assert np.array_equal(plain(a), plain(b))
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("libraries")


@pytest.mark.parametrize("case", CASES)
def test_with_a_target_the_tree_comes_back_as_it_was(case, folder):
    tree = CASES[case]()
    hf.save(folder / "ours" / case, tree, overwrite=True)
    found = hf.load(folder / "ours" / case, abstract(tree))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert same_leaves(found, tree)


@pytest.mark.parametrize("case", CASES)
def test_without_a_target_every_leaf_has_its_path(case, folder):
    tree = CASES[case]()
    hf.save(folder / "ours" / case, tree, overwrite=True)
    flat = hf.tree.to_flat_dict(hf.load(folder / "ours" / case))
    expected = hf.tree.to_flat_dict(tree)
    assert flat.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.array_equal(plain(flat[path]), plain(leaf)), path


NOT_IN_ORBAX = {
    "optax empty": "a tree without leaves, which Orbax refuses to save",
}


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_IN_ORBAX])
def test_orbax_loads_it_with_the_same_target(case, folder):
    tree = CASES[case]()
    hf.save(folder / "ours" / case, tree, overwrite=True)
    found = ocp.load(folder / "ours" / case, abstract(tree))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert same_leaves(found, tree)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_IN_ORBAX])
def test_what_orbax_saved_is_loaded_with_the_same_target(case, folder):
    tree = CASES[case]()
    ocp.save(folder / "theirs" / case, tree, overwrite=True)
    found = hf.load(folder / "theirs" / case, abstract(tree))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert same_leaves(found, tree)


def test_an_nnx_model_goes_on_from_what_was_loaded(folder):
    graph, state = nnx.split(Model(nnx.Rngs(0)))
    hf.save(folder / "nnx model", state)
    _, fresh = nnx.split(Model(nnx.Rngs(1)))
    loaded = hf.load(folder / "nnx model", fresh)
    assert type(loaded) is nnx.State
    x = jnp.ones((2, 3))
    before, after = nnx.merge(graph, state)(x), nnx.merge(graph, loaded)(x)
    assert np.array_equal(before, after)


def test_a_training_step_goes_on_from_what_was_loaded(folder):
    state = train_state()
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, PARAMS))
    hf.save(folder / "train", state)
    found = hf.load(folder / "train", train_state())
    step = found.apply_gradients(grads=PARAMS)
    assert same_leaves(step, state.apply_gradients(grads=PARAMS))


def test_an_equinox_model_is_saved_by_its_arrays_and_refused_with_its_functions(folder):
    model = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    with pytest.raises(hf.errors.UnsupportedLeafError, match=r"activation.*is no leaf"):
        hf.save(folder / "mlp", model)
    arrays, static = eqx.partition(model, eqx.is_array)
    hf.save(folder / "mlp", arrays)
    other = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(1)), eqx.is_array)
    found = eqx.combine(hf.load(folder / "mlp", other), static)
    assert np.array_equal(found(jnp.ones(2)), model(jnp.ones(2)))


class Unregistered:
    def __init__(self):
        self.w = np.ones(3)


def test_a_class_that_jax_does_not_know_is_refused_with_its_path_and_the_remedy(folder):
    with pytest.raises(hf.errors.UnsupportedLeafError) as caught:
        hf.save(folder / "unregistered", {"layers": [Unregistered()]})
    assert "['layers'][0]: " in str(caught.value)
    assert "Unregistered is no leaf" in str(caught.value)
    assert "register_pytree_with_keys" in str(caught.value)
    assert not (folder / "unregistered").exists()


@pytest.mark.parametrize("writer", ["v1", "v0", "ours"])
def test_a_part_under_other_names_is_loaded_whoever_saved_it(writer, folder):
    tree = {"params": PARAMS, "opt": optax.adamw(1e-3).init(PARAMS)}
    path = folder / f"part {writer}"
    if writer == "v0":
        with ocp0.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
    else:
        (ocp if writer == "v1" else hf).save(path, tree)
    found = hf.load(path, select="params/**", rename={"params/(.*)": r"model/\1"})
    assert set(found) == {"model"}
    assert same_leaves(found["model"], PARAMS)
    mu = hf.load(path, {"mu": PARAMS}, select="opt/0/mu/**", rename={"opt/0/mu/(.*)": r"mu/\1"})
    assert same_leaves(mu, {"mu": tree["opt"][0].mu})


def test_orbax_opens_what_was_saved_in_parts(folder):
    tree = {"params": PARAMS, "opt": optax.adamw(1e-3).init(PARAMS), "name": "model"}
    for key, value in tree.items():
        hf.partial.save(folder / "parts", {key: value}, custom_metadata={key: 1})
    hf.partial.finalize(folder / "parts")
    assert hf.verify(folder / "parts").ok
    assert same_leaves(ocp.load(folder / "parts", abstract(tree)), tree)
    assert same_leaves(ocp.load(folder / "parts")["params"], PARAMS)
    assert ocp.metadata(folder / "parts").custom_metadata == {"params": 1, "opt": 1, "name": 1}
    with ocp0.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(folder / "parts" / "state")
    assert np.array_equal(found["params"]["dense"]["kernel"], PARAMS["dense"]["kernel"])
