"""PyTrees as flat dicts and as plain containers, and what differs between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from holdfast_checkpointer.trees.levels import IsLeaf, children, is_sequence, key_of, put_back

_ABSENT = object()


class Diff(NamedTuple):
    """What one place holds in each of two trees; None where it is in one only."""

    lhs: Any
    rhs: Any


def str_keypath(keypath: tuple[Any, ...]) -> tuple[str, ...]:
    """A key path of JAX's as text: keys, positions and field names.

    Examples:
        >>> import jax
        >>> ((path, leaf),) = jax.tree_util.tree_leaves_with_path({"a": [5]})
        >>> str_keypath(path)
        ('a', '0')
    """
    return tuple(str(key_of(entry)) for entry in keypath)


def to_flat_dict(
    tree: Any, sep: str | None = None, keep_empty_nodes: bool = False, is_leaf: IsLeaf = None
) -> dict[Any, Any]:
    """The leaves of a PyTree by their paths as text.

    Args:
        tree: A PyTree.
        sep: Join paths with this; else they are tuples.
        keep_empty_nodes: Also give None and empty containers.
        is_leaf: Says of a node that it is a leaf.

    Raises:
        ValueError: Two leaves would have the same path.

    Examples:
        >>> to_flat_dict({"a": [1, {"b": 2}], "e": {}}, sep="/")
        {'a/0': 1, 'a/1/b': 2}
    """
    found: dict[Any, Any] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        below = children(node, is_leaf)
        if below:
            for key, child in below:
                visit(child, (*path, str(key)))
        elif keep_empty_nodes or (below is None and node is not None):
            name = path if sep is None else sep.join(path)
            if name in found:
                raise ValueError(f"two leaves have the path {name!r}; give another sep, or none")
            found[name] = node

    visit(tree, ())
    return found


def from_flat_dict(flat_dict: Mapping[Any, Any], target: Any = None, sep: str | None = None) -> Any:
    """A PyTree of a flat dict: with the containers of a target, else of dicts.

    Args:
        flat_dict: Leaves by path, as `to_flat_dict` gives them.
        target: A PyTree with exactly these leaves; its own do not matter.
        sep: What joins the paths, if they are text.

    Raises:
        KeyError: The target has a leaf that is not in the flat dict.
        ValueError: The flat dict has a leaf that is not in the target, or one inside another.

    Examples:
        >>> from_flat_dict({"a/0": 1, "a/1": 2}, target={"a": (0, 0)}, sep="/")
        {'a': (1, 2)}
    """
    left = {
        tuple(path.split(sep)) if sep is not None else tuple(path): leaf
        for path, leaf in flat_dict.items()
    }
    if target is None:
        return _nested(left)

    def fill(node: Any, path: tuple[str, ...]) -> Any:
        below = children(node)
        if below:
            return put_back(node, [(key, fill(child, (*path, str(key)))) for key, child in below])
        if path in left:
            return left.pop(path)
        if below is not None or node is None:
            return node
        raise KeyError(f"{path} is in the target and not in the flat dict")

    filled = fill(target, ())
    if left:
        raise ValueError(f"{sorted(left)[:5]} are in the flat dict and not in the target")
    return filled


def _nested(leaves: Mapping[tuple[str, ...], Any]) -> Any:
    if () in leaves and len(leaves) == 1:
        return leaves[()]
    root: dict[str, Any] = {}
    ends: set[tuple[str, ...]] = set()
    for path, leaf in leaves.items():
        node: Any = root
        for length, key in enumerate(path[:-1], 1):
            if path[:length] in ends:
                raise ValueError(f"{path} lies inside the leaf {path[:length]}")
            node = node.setdefault(key, {})
        if not path or path[-1] in node:
            raise ValueError(f"other leaves lie inside the leaf {path}")
        node[path[-1]] = leaf
        ends.add(path)
    return root


def is_flat_dict(tree: Any) -> bool:
    """Whether it is a dict without a container in it.

    Examples:
        >>> is_flat_dict({("a", "b"): 1}), is_flat_dict({"a": {"b": 1}})
        (True, False)
    """
    return isinstance(tree, dict) and all(children(value) is None for value in tree.values())


def serialize_tree(tree: Any, keep_empty_nodes: bool = False) -> Any:
    """A PyTree of dicts with text as keys and lists only: what any format can hold.

    Args:
        tree: A PyTree.
        keep_empty_nodes: Keep None and containers without leaves, which are left out otherwise.

    Raises:
        ValueError: Nothing is left of the tree: a container that is left out cannot be told
            from another.

    Examples:
        >>> serialize_tree({1: (2, [3]), 2: ()})
        {'1': [2, [3]]}
    """
    made = _serialized(tree, keep_empty_nodes)
    if made is _ABSENT:
        raise ValueError("the tree has no leaves; keep_empty_nodes=True keeps its containers")
    return made


def _serialized(node: Any, keep: bool) -> Any:
    below = children(node)
    if below is None:
        return node if keep or node is not None else _ABSENT
    found = [(key, _serialized(child, keep)) for key, child in below]
    kept = [(key, child) for key, child in found if child is not _ABSENT]
    if not kept and not keep:
        return _ABSENT
    if is_sequence(node):
        return [child for _, child in kept]
    return {str(key): child for key, child in kept}


def deserialize_tree(serialized: Any, target: Any, keep_empty_nodes: bool = False) -> Any:
    """The inverse of `serialize_tree`, with the containers of a target.

    Args:
        serialized: What `serialize_tree` gave.
        target: A PyTree with exactly these leaves; its own do not matter.
        keep_empty_nodes: As it was given to `serialize_tree`.

    Raises:
        KeyError: The target has a leaf that is not there.
        ValueError: There is a leaf that is not in the target.

    Examples:
        >>> deserialize_tree({"1": [2, [3]]}, {1: (0, [0])})
        {1: (2, [3])}
    """
    flat = to_flat_dict(serialized, keep_empty_nodes=keep_empty_nodes)
    return from_flat_dict(flat, target)


def get_param_names(item: Any, *, include_empty_nodes: bool = True) -> Any:
    """The PyTree with each leaf's parameter name, its path joined by dots, in its place.

    Args:
        item: A PyTree.
        include_empty_nodes: Also name None and empty containers; else they stay as they are.

    Examples:
        >>> get_param_names({"a": [5, None]}, include_empty_nodes=False)
        {'a': ['a.0', None]}
    """

    def name(node: Any, path: tuple[str, ...]) -> Any:
        below = children(node)
        if below:
            return put_back(node, [(key, name(child, (*path, str(key)))) for key, child in below])
        empty = below is not None or node is None
        return node if empty and not include_empty_nodes else ".".join(path)

    return name(item, ())


def tree_difference(
    a: Any,
    b: Any,
    *,
    is_leaf: IsLeaf = None,
    leaves_equal: Callable[[Any, Any], bool] | None = None,
) -> Any:
    """What differs between two PyTrees: a tree of `Diff`, or None if nothing does.

    Args:
        a: One.
        b: The other.
        is_leaf: Says of a node that it is a leaf.
        leaves_equal: Compares two leaves; without it they are not compared.

    Examples:
        >>> tree_difference({"a": 1, "b": {"c": 2}}, {"a": 5, "b": {"d": 2}})
        {'b': {'c': Diff(lhs=2, rhs=None), 'd': Diff(lhs=None, rhs=2)}}
    """
    ours, theirs = children(a, is_leaf), children(b, is_leaf)
    if ours is None and theirs is None and a is not None and b is not None:
        return Diff(a, b) if leaves_equal is not None and not leaves_equal(a, b) else None
    if type(a) is not type(b):
        return Diff(type(a), type(b))
    if ours is None or theirs is None:
        return None if a is b else Diff(a, b)
    if is_sequence(a) and len(ours) != len(theirs):
        return Diff((type(a), len(a)), (type(b), len(b)))
    left = dict(theirs)
    found: dict[Any, Any] = {}
    for key, child in ours:
        if key not in left:
            found[key] = Diff(child, None)
            continue
        found[key] = tree_difference(
            child, left.pop(key), is_leaf=is_leaf, leaves_equal=leaves_equal
        )
    found |= {key: Diff(None, child) for key, child in left.items()}
    differing = {key: value for key, value in found.items() if value is not None}
    return differing or None


def tree_trim(
    template: Any,
    structure: Any,
    *,
    trimmed_structure_callback: Callable[[tuple[str, ...], Any], None] | None = None,
) -> Any:
    """The part of a PyTree that a template has, in the template's containers.

    Args:
        template: Says what to keep; its leaves do not matter.
        structure: A PyTree that has all of it.
        trimmed_structure_callback: Is told the path and the value of what is left out.

    Raises:
        ValueError: The structure lacks something, or a sequence has another length.

    Examples:
        >>> tree_trim({"a": {"b": 0}}, {"a": {"b": 1, "c": 2}, "d": 3})
        {'a': {'b': 1}}
    """

    def trim(wanted: Any, there: Any, path: tuple[str, ...]) -> Any:
        below, found = children(wanted), children(there)
        if below is None:
            return None if wanted is None else there
        where = "/".join(path) or "(root)"
        if found is None or is_sequence(wanted) != is_sequence(there):
            raise ValueError(
                f"{where}: the template has a {type(wanted).__name__}, the structure a "
                f"{type(there).__name__}"
            )
        if is_sequence(wanted) and len(below) != len(found):
            raise ValueError(
                f"{where}: the template has {len(below)} elements, the structure {len(found)}"
            )
        left = dict(found)
        missing = [key for key, _ in below if key not in left]
        if missing:
            raise ValueError(f"{where}: the structure lacks {missing[:5]}")
        kept = [(key, trim(child, left.pop(key), (*path, str(key)))) for key, child in below]
        if trimmed_structure_callback is not None:
            for key, value in left.items():
                trimmed_structure_callback((*path, str(key)), value)
        return put_back(wanted, kept)

    return trim(template, structure, ())
