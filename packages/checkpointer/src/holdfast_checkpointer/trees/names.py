"""Parameter names: Orbax's where they are unambiguous, escaped where they are not.

Orbax joins the steps of a path with dots and escapes nothing, so that `{"a.b": x}` and
`{"a": {"b": y}}` are stored over each other. Names here are injective: a tree in which two
leaves would collide has the colliding ones escaped, and Orbax cannot read that item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from holdfast_checkpointer.trees.paths import show, text
from holdfast_metadata import Key, canonical_json
from holdfast_metadata.tree import Step

Path = tuple[Step, ...]


def parameter_names(paths: Sequence[Path]) -> tuple[list[str], str | None]:
    """A unique name for each path, and why Orbax cannot read them, or None.

    Examples:
        >>> a, b = Key("str", "a"), Key("str", "b")
        >>> parameter_names([(a, b), (b,)])
        (['a.b', 'b'], None)
    """
    names = [".".join(map(text, path)) for path in paths]
    clashing = _clashing(names)
    if not clashing:
        return names, None
    escaped = [
        _escaped(path) if name in clashing else name
        for path, name in zip(paths, names, strict=True)
    ]
    shown = " and ".join(
        [show(path) for path, name in zip(paths, names, strict=True) if name in clashing][:2]
    )
    return escaped, f"{shown} have the same parameter name in Orbax"


def _clashing(names: Sequence[str]) -> set[str]:
    """Names shared by two leaves, and names whose keys lie inside another's."""
    count: dict[str, int] = defaultdict(int)
    for name in names:
        count[name] += 1
    clashing = {name for name, times in count.items() if times > 1}
    for name in names:
        # The array `a` owns the keys a/zarr.json and a/c/...: no other name may be below.
        head, slash, _ = name.partition("/")
        while slash:
            if head in count:
                clashing |= {name, head}
            rest = name[len(head) + 1 :]
            nested, slash, _ = rest.partition("/")
            head = f"{head}/{nested}"
        if name.split("/", 1)[0] in ("c", "zarr.json") and "" in count and name:
            clashing |= {name, ""}
    return clashing


def _escaped(path: Path) -> str:
    """A name that spells the path with its types; no plain name starts like it."""
    steps = [
        ["k", step.to_json()]
        if isinstance(step, Key)
        else ["i" if isinstance(step, int) else "f", step]
        for step in path
    ]
    return "%holdfast%" + canonical_json(steps).decode("ascii").replace("/", "\\u002f")
