"""PyTrees: merged, flattened, compared; and names of their types."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import jax
import numpy as np

from holdfast_checkpointer.trees.flat import (
    Diff,
    deserialize_tree,
    from_flat_dict,
    get_param_names,
    is_flat_dict,
    serialize_tree,
    str_keypath,
    to_flat_dict,
    tree_difference,
    tree_trim,
)
from holdfast_checkpointer.trees.merging import merge

T = TypeVar("T")
PyTree: TypeAlias = Any
if TYPE_CHECKING:
    PyTreeOf: TypeAlias = T | Any
else:

    class PyTreeOf(Generic[T]):
        """In annotations: a PyTree all of whose leaves are of one type."""


PyTreeKey: TypeAlias = (
    jax.tree_util.DictKey
    | jax.tree_util.GetAttrKey
    | jax.tree_util.SequenceKey
    | jax.tree_util.FlattenedIndexKey
)
PyTreeKeyPath: TypeAlias = tuple[PyTreeKey, ...]
JsonType: TypeAlias = dict[str, Any] | Sequence[Any] | str | int | float | bool | None
Leaf: TypeAlias = (
    jax.Array | np.ndarray[Any, Any] | np.generic | int | float | complex | str | bytes
)
AbstractLeaf: TypeAlias = jax.ShapeDtypeStruct | Leaf | type[Any]

__all__ = [
    "AbstractLeaf",
    "Diff",
    "JsonType",
    "Leaf",
    "PyTree",
    "PyTreeKey",
    "PyTreeKeyPath",
    "PyTreeOf",
    "deserialize_tree",
    "from_flat_dict",
    "get_param_names",
    "is_flat_dict",
    "merge",
    "serialize_tree",
    "str_keypath",
    "to_flat_dict",
    "tree_difference",
    "tree_trim",
]
