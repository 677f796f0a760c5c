"""The public names of the installed Orbax, read from its modules."""

import __future__

import abc
import collections.abc
import contextlib
import dataclasses
import enum
import functools
import pathlib
import types
import typing
from collections.abc import Iterator

import orbax.checkpoint

_LIBRARIES = (typing, collections.abc, abc, contextlib, dataclasses, enum, functools, pathlib)


def modules() -> Iterator[tuple[str, list[str]]]:
    """Every public module of Orbax's, by the name that a user writes, with its own names."""
    root = orbax.checkpoint
    yield "orbax.checkpoint", _own(root)
    for name, module in _submodules(root, "orbax.checkpoint"):
        if name not in ("experimental", "v1"):
            yield f"orbax.checkpoint.{name}", _own(module)
    yield from _v1(root.v1, "orbax.checkpoint.v1")


def _v1(module: types.ModuleType, name: str) -> Iterator[tuple[str, list[str]]]:
    yield name, _own(module)
    if name.count(".") < 4:
        for below, submodule in _submodules(module, "orbax.checkpoint.experimental.v1"):
            yield from _v1(submodule, f"{name}.{below}")


def _submodules(module: types.ModuleType, family: str) -> list[tuple[str, types.ModuleType]]:
    found = [(name, getattr(module, name)) for name in dir(module) if name[0] != "_"]
    return [
        (name, value)
        for name, value in found
        if isinstance(value, types.ModuleType) and value.__name__.startswith(f"{family}.")
    ]


def _own(module: types.ModuleType) -> list[str]:
    """Names without the modules and the library types that a module imports for itself."""
    return [name for name in dir(module) if name[0] != "_" and _is_own(name, getattr(module, name))]


def _is_own(name: str, value: object) -> bool:
    if isinstance(value, types.ModuleType | type(__future__.annotations)):
        return False
    return not any(getattr(library, name, None) is value for library in _LIBRARIES)
