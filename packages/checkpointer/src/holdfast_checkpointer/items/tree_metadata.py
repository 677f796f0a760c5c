"""An item described, with what Orbax's v0 handlers give for it: a tree and a word beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class TreeMetadata:
    """A PyTree item, described: itself a PyTree, and a mapping where the tree is one.

    It can be given to a restore as the target.

    Attributes:
        tree: The PyTree, with `ArrayMetadata` for arrays and the values themselves for
            numbers, strings and bytes.
        custom_metadata: What was stored beside the item.
    """

    tree: Any
    custom_metadata: Mapping[str, Any] | None = field(default=None)

    def __getitem__(self, key: Any) -> Any:
        return self.tree[key]

    def __contains__(self, key: object) -> bool:
        return key in self.tree

    def __len__(self) -> int:
        return len(self.tree)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tree)

    def get(self, key: Any, default: Any = None) -> Any:
        """The part of that name, or the default."""
        return self.tree.get(key, default)

    def keys(self) -> Any:
        """The names of the tree's parts."""
        return self.tree.keys()

    def values(self) -> Any:
        """The tree's parts."""
        return self.tree.values()

    def items(self) -> Any:
        """The tree's parts with their names."""
        return self.tree.items()

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        """For JAX: the tree is the one child."""
        return (self.tree,), self.custom_metadata

    @classmethod
    def tree_unflatten(cls, custom_metadata: Any, children: tuple[Any]) -> TreeMetadata:
        """For JAX: the inverse of `tree_flatten`."""
        return cls(children[0], custom_metadata)


def without_description(item: Any) -> Any:
    """The tree itself, if a `TreeMetadata` was given in its place."""
    return item.tree if isinstance(item, TreeMetadata) else item
