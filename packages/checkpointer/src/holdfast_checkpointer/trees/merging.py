"""`tree.merge`: one PyTree of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast_checkpointer.trees.levels import IsLeaf, children, is_sequence, put_back

Path = tuple[Any, ...]


def merge(*trees: Any, overwrite: bool = False, is_leaf: IsLeaf = None) -> Any:
    """Merges PyTrees into one that has the leaves of all; the trees themselves stay.

    Mappings, named tuples and dataclasses are merged by key, lists and tuples element by
    element. None is a leaf here.

    Args:
        *trees: PyTrees. None of them gives `{}`.
        overwrite: What is there twice is taken from the later tree, unless it is None there;
            of two mappings or two sequences of different types the later type is taken.
        is_leaf: Says of a node that it is a leaf.

    Raises:
        ValueError: Sequences have different lengths; or, without `overwrite`, leaves have the
            same path or nodes are of different types. The message has every such path.

    Examples:
        >>> merge({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3})
        {'a': {'x': 1, 'y': 2}, 'b': 3}
        >>> merge({"a": 1, "b": 2}, {"a": 3, "b": None}, overwrite=True)
        {'a': 3, 'b': 2}
    """
    if not trees:
        return {}
    problems: list[str] = []
    merger = _Merger(overwrite, is_leaf, problems)
    merged = trees[0]
    for tree in trees[1:]:
        merged = merger.merge(merged, tree, ())
    if problems:
        advice = "" if overwrite else "; overwrite=True takes the later one of two leaves"
        raise ValueError(f"the trees cannot be merged: {'; '.join(problems)}{advice}")
    return merged


class _Merger:
    def __init__(self, overwrite: bool, is_leaf: IsLeaf, problems: list[str]) -> None:
        self._overwrite = overwrite
        self._is_leaf = is_leaf
        self._problems = problems

    def merge(self, first: Any, second: Any, path: Path) -> Any:
        ours, theirs = children(first, self._is_leaf), children(second, self._is_leaf)
        if ours is None and theirs is None:
            return self._one_of(first, second, path, "is in two of them")
        if ours is None or theirs is None:
            return self._one_of(first, second, path, _types(first, second))
        if is_sequence(first) and is_sequence(second) and len(ours) != len(theirs):
            self._problem(path, f"sequences have {len(ours)} and {len(theirs)} elements")
            return first
        alike = type(first) is type(second)
        if not alike and not self._overwrite:
            self._problem(path, _types(first, second))
            return first
        if not alike and not _mergeable(first, second):
            return second
        return self._joined(second, ours, theirs, path)

    def _joined(
        self, second: Any, ours: list[tuple[Any, Any]], theirs: list[tuple[Any, Any]], path: Path
    ) -> Any:
        found = dict(ours)
        for key, child in theirs:
            inside = (*path, key)
            found[key] = self.merge(found[key], child, inside) if key in found else child
        try:
            return put_back(second, list(found.items()))
        except ValueError as error:
            self._problem(path, str(error))
            return second

    def _one_of(self, first: Any, second: Any, path: Path, problem: str) -> Any:
        if not self._overwrite:
            self._problem(path, problem)
        return first if second is None else second

    def _problem(self, path: Path, problem: str) -> None:
        self._problems.append(f"{'/'.join(map(str, path)) or '(root)'} {problem}")


def _mergeable(first: Any, second: Any) -> bool:
    both_mappings = isinstance(first, Mapping) and isinstance(second, Mapping)
    return both_mappings or (is_sequence(first) and is_sequence(second))


def _types(first: Any, second: Any) -> str:
    return f"is a {type(first).__name__} and a {type(second).__name__}"
