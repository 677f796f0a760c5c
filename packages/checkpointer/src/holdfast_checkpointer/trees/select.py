"""Choosing and renaming what a load reads: the saved tree, transformed before it is matched.

A leaf is known by its key path, the steps from the root joined by `/`: mapping keys as their
text, positions as numbers, fields by name. Text is escaped so that no two leaves of a tree
have one path: `/` in a key is `%2F` and `%` is `%25`, and where a mapping holds both 1 and
"1" the one that is no text is `%int:1`. None and empty containers have paths, too.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.errors import SelectionError
from holdfast_checkpointer.trees.paths import text
from holdfast_metadata import CustomNode, DictNode, Key, LeafNode, Node, NoneNode
from holdfast_metadata.tree import Step, children_of, steps_of

Segments = tuple[str, ...]
Rename = Mapping[str, str] | Callable[[str], str]
_SHOWN = 8


@dataclass(frozen=True)
class _End:
    """A leaf, a None or an empty container, and the nodes and steps that lead to it."""

    node: Node
    above: tuple[tuple[Node, Step], ...]
    old: Segments
    new: Segments


@dataclass(frozen=True)
class Selection:
    """A checked `select=` and `rename=`.

    Attributes:
        globs: What to keep; None keeps all.
        rename: What to call it.
    """

    globs: tuple[str, ...] | None = None
    rename: Rename | None = None

    @classmethod
    def of(cls, select: Any, rename: Any) -> Selection | None:
        """Checks the two arguments; None if there is nothing to do. No I/O.

        Raises:
            SelectionError: One is not what is accepted; says what is.
        """
        if select is None and rename is None:
            return None
        return cls(_checked_globs(select), _checked_rename(rename))

    def apply(self, root: Node) -> Node:
        """The tree that is left, under its new names.

        Containers that keep their place or move as a whole stay what they are. A sequence of
        which not all positions are left, and whatever a rename made, is a dict: by position,
        by field, or by the text of the new path.

        Raises:
            SelectionError: A glob or pattern matches nothing, or two leaves would have one
                path, or one would lie inside another.
        """
        ends = list(_ends(root, (), ()))
        if self.globs is not None:
            ends = _select(ends, self.globs)
        if self.rename is not None:
            ends = _rename(ends, self.rename)
        return _build(ends, 0) if ends else root


def key_paths(root: Node) -> list[str]:
    """The key path of every leaf, None and empty container, in the tree's order.

    Examples:
        >>> a = DictNode(None, (Key.of("a/b"), Key.of(3)), (NoneNode(), NoneNode()))
        >>> key_paths(a)
        ['a%2Fb', '3']
    """
    return ["/".join(end.old) for end in _ends(root, (), ())]


def _checked_globs(select: Any) -> tuple[str, ...] | None:
    if select is None:
        return None
    globs = (select,) if isinstance(select, str) else select
    accepted = "accepted is a glob over key paths such as 'params/**', or a sequence of them"
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise SelectionError(f"select={select!r} is no glob; {accepted}")
    if not globs:
        raise SelectionError(f"select={select!r} would load nothing; {accepted}")
    return tuple(globs)


def _checked_rename(rename: Any) -> Rename | None:
    if rename is None or (callable(rename) and not isinstance(rename, Mapping)):
        return rename
    accepted = (
        "accepted is a mapping of regular expressions over whole key paths to replacements, "
        r"such as {r'layer_(\d+)/(.*)': r'layers/\1/\2'}, or a function from path to path"
    )
    if not isinstance(rename, Mapping) or not rename:
        raise SelectionError(f"rename={rename!r} is no renaming; {accepted}")
    for pattern, replacement in rename.items():
        if not isinstance(pattern, str) or not isinstance(replacement, str):
            raise SelectionError(f"rename: {pattern!r}: {replacement!r} is not text; {accepted}")
        try:
            re.compile(pattern).sub(replacement, "")
        except (re.error, IndexError) as error:
            raise SelectionError(
                f"rename: {pattern!r}: {replacement!r} is no regular expression and replacement: "
                f"{error}; {accepted}"
            ) from error
    return dict(rename)


def _ends(node: Node, above: tuple[tuple[Node, Step], ...], path: Segments) -> Iterator[_End]:
    children = children_of(node)
    if not children:
        yield _End(node, above, path, path)
        return
    steps = steps_of(node)
    for step, segment, child in zip(steps, _segments(steps), children, strict=True):
        yield from _ends(child, (*above, (node, step)), (*path, segment))


def _segments(steps: Sequence[Step]) -> list[str]:
    """The steps of one node as they are written; no two are the same."""
    written = [_escape(text(step)) for step in steps]
    count = Counter(written)
    return [
        f"%{step.kind}:{segment}"
        if count[segment] > 1 and isinstance(step, Key) and step.kind != "str"
        else segment
        for step, segment in zip(steps, written, strict=True)
    ]


def _escape(segment: str) -> str:
    return segment.replace("%", "%25").replace("/", "%2F")


def _unescape(segment: str) -> str:
    return segment.replace("%2F", "/").replace("%25", "%")


def _select(ends: Sequence[_End], globs: Sequence[str]) -> list[_End]:
    kept: set[int] = set()
    for glob in globs:
        matches = _matcher(glob)
        found = {index for index, end in enumerate(ends) if matches(end.old)}
        if not found:
            raise SelectionError(f"select={glob!r} matches nothing; {_near(glob, ends)}")
        kept |= found
    return [end for index, end in enumerate(ends) if index in kept]


def _matcher(glob: str) -> Callable[[Segments], bool]:
    """Whether a path matches: `**` takes any number of segments, the rest works within one."""
    parts = glob.split("/") if glob else []
    compiled = [
        None if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts
    ]

    def matches(path: Segments) -> bool:
        reached = {0}  # how many parts may have been used up so far
        for segment in path:
            reached = _over_stars(reached, parts)
            after = set()
            for at in reached:
                if at == len(parts):
                    continue
                part = compiled[at]
                if part is None:
                    after.add(at)
                elif part(segment):
                    after.add(at + 1)
            reached = after
        return len(parts) in _over_stars(reached, parts)

    return matches


def _over_stars(reached: set[int], parts: Sequence[str]) -> set[int]:
    """`**` may take no segment at all."""
    found = set(reached)
    for at in reached:
        following = at
        while following < len(parts) and parts[following] == "**":
            following += 1
            found.add(following)
    return found


def _rename(ends: Sequence[_End], rename: Rename) -> list[_End]:
    if isinstance(rename, Mapping):
        new = _by_pattern(["/".join(end.old) for end in ends], rename, ends)
    else:
        new = [_call(rename, "/".join(end.old)) for end in ends]
    renamed = [
        end if path == "/".join(end.old) else dataclasses.replace(end, new=_parse(path, end))
        for end, path in zip(ends, new, strict=True)
    ]
    _refuse_collisions(renamed)
    return renamed


def _by_pattern(paths: Sequence[str], rename: Mapping[str, str], ends: Sequence[_End]) -> list[str]:
    """The first pattern that matches a whole path renames it."""
    patterns = [(re.compile(pattern), replacement) for pattern, replacement in rename.items()]
    used = set()
    new = []
    for path in paths:
        for pattern, replacement in patterns:
            found = pattern.fullmatch(path)
            if found:
                used.add(pattern.pattern)
                path = found.expand(replacement)
                break
        new.append(path)
    for pattern, _ in patterns:
        if pattern.pattern not in used:
            raise SelectionError(
                f"rename: {pattern.pattern!r} matches no whole path that is selected and that no "
                f"earlier pattern takes; {_near(pattern.pattern, ends)}"
            )
    return new


def _call(rename: Callable[[str], str], path: str) -> str:
    new = rename(path)
    if not isinstance(new, str):
        raise SelectionError(f"rename gave {new!r} for {path!r}; accepted is a path, as text")
    return new


def _parse(path: str, end: _End) -> Segments:
    if not path:
        raise SelectionError(f"rename gave {'/'.join(end.old)!r} an empty path")
    return tuple(path.split("/"))


def _refuse_collisions(ends: Sequence[_End]) -> None:
    taken: dict[Segments, _End] = {}
    for end in ends:
        other = taken.setdefault(end.new, end)
        if other is not end:
            raise SelectionError(
                f"rename: {'/'.join(other.old)!r} and {'/'.join(end.old)!r} would both be "
                f"{'/'.join(end.new)!r}"
            )
    for end in ends:
        for length in range(len(end.new)):
            outer = taken.get(end.new[:length])
            if outer is not None:
                raise SelectionError(
                    f"rename: {'/'.join(end.old)!r} as {'/'.join(end.new)!r} would lie inside "
                    f"{'/'.join(outer.old)!r} as {'/'.join(outer.new)!r}"
                )


def _near(wanted: str, ends: Sequence[_End]) -> str:
    """Paths that may have been meant: those alike first."""
    paths = ["/".join(end.old) for end in ends]
    if paths == [""]:
        return "the tree is a single value or an empty container"
    alike = difflib.get_close_matches(wanted, paths[:5000], n=_SHOWN, cutoff=0.4)
    shown = alike + [path for path in paths[: 2 * _SHOWN] if path not in alike]
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"there are {', '.join(map(repr, shown[:_SHOWN]))}{more}"


def _build(ends: Sequence[_End], depth: int) -> Node:
    """The tree of some leaves whose new paths agree in their first `depth` segments."""
    if len(ends) == 1 and len(ends[0].new) == depth:
        return ends[0].node
    groups: dict[str, list[_End]] = {}
    for end in ends:
        groups.setdefault(end.new[depth], []).append(end)
    children = {segment: _build(group, depth + 1) for segment, group in groups.items()}
    origins = {segment: _origin(group, depth) for segment, group in groups.items()}
    first = next(iter(origins.values()))
    if first is not None and all(o is not None and o[0] is first[0] for o in origins.values()):
        steps = [origin[1] for origin in origins.values() if origin is not None]
        kept = _subset(first[0], steps, tuple(children.values()))
        if kept is not None:
            return kept
    keys = tuple(_key(segment, origins[segment]) for segment in sorted(children, key=_order))
    return DictNode(
        None, keys, tuple(children[segment] for segment in sorted(children, key=_order))
    )


def _origin(group: Sequence[_End], depth: int) -> tuple[Node, Step] | None:
    """The saved container, and the step in it, that this child kept; None if it is new."""
    found: tuple[Node, Step] | None = None
    for end in group:
        at = len(end.old) - (len(end.new) - depth)
        if at < 0 or end.old[at:] != end.new[depth:]:
            return None
        node, step = end.above[at]
        if found is not None and (found[0] is not node or found[1] != step):
            return None
        found = node, step
    return found


def _subset(node: Node, steps: Sequence[Step], children: tuple[Node, ...]) -> Node | None:
    """A saved container with some of its children; None if it cannot do without the others."""
    if isinstance(node, LeafNode | NoneNode):
        return None
    if isinstance(node, DictNode) or (isinstance(node, CustomNode) and not node.indexed):
        keys = tuple(step for step in steps if isinstance(step, Key))
        return dataclasses.replace(node, keys=keys, children=children)
    if tuple(steps) != steps_of(node):
        return None
    return dataclasses.replace(node, children=children)


def _key(segment: str, origin: tuple[Node, Step] | None) -> Key:
    if origin is None:
        return Key("str", _unescape(segment))
    step = origin[1]
    return step if isinstance(step, Key) else Key.of(step)


def _order(segment: str) -> tuple[bool, int, str]:
    number = segment.isascii() and segment.isdecimal()
    return (not number, int(segment) if number else 0, segment)
