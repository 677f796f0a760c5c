"""Paths to leaves, for people: `params['dense'].kernel[0]`."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_metadata import Key
from holdfast_metadata.tree import Step


def show(path: Sequence[Step]) -> str:
    """A path as one would write it in Python; the root is `(root)`.

    Examples:
        >>> show((Key("str", "params"), 0, "kernel"))
        "['params'][0].kernel"
    """
    parts = []
    for step in path:
        if isinstance(step, Key):
            parts.append(f"[{step.python()!r}]")
        elif isinstance(step, int):
            parts.append(f"[{step}]")
        else:
            parts.append(f".{step}")
    return "".join(parts) or "(root)"


def text(step: Step) -> str:
    """A step as it appears in a parameter name."""
    return str(step.python()) if isinstance(step, Key) else str(step)
