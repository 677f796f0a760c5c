"""Errors of saves and loads, of trees and leaves."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_metadata import HoldfastError
from holdfast_storage import errors as storage

InvalidLayoutError = storage.InvalidLayoutError
_SHOWN = 20


def _listed(problems: Sequence[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return shown + more


class AbandonedError(HoldfastError, TimeoutError):
    """Background work was ended because the time that it had was over; the message says why.

    A save that was stopped left nothing behind. One that did not even stop was given up: it may
    be committed yet, and is swept later if it is not.
    """


class TreeMismatchError(HoldfastError, ValueError):
    """The target does not fit what was saved; nothing was loaded.

    Attributes:
        problems: Every difference, each with its path.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        count = "1 difference" if len(problems) == 1 else f"{len(problems)} differences"
        super().__init__(
            f"the target does not match the checkpoint in {count}:\n{_listed(problems)}"
        )
        self.problems = tuple(problems)


class PartialSaveReplacementError(HoldfastError, ValueError):
    """A part of a checkpoint holds what another part holds; it was not saved.

    Attributes:
        problems: Every such place, with its item and path.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(
            f"a part of a checkpoint cannot replace what is saved:\n{_listed(problems)}\n"
            "the parts that were saved stay; leave these out, or finalize at another path"
        )
        self.problems = tuple(problems)


class UnsupportedTargetError(TreeMismatchError, TypeError):
    """A leaf of the target is of a type that says nothing about what to load."""


class UnsupportedLeafError(HoldfastError, ValueError):
    """The tree holds something that cannot be saved; nothing was written.

    Attributes:
        problems: Every such place, with its path and type.
    """

    def __init__(self, problems: Sequence[str], *, accepted: str = "") -> None:
        accepted = accepted or (
            "accepted leaves: jax.Array, typed PRNG keys, np.ndarray, NumPy scalars, int, "
            "float, bool, complex, str, bytes, None"
        )
        super().__init__(f"the tree cannot be saved:\n{_listed(problems)}\n{accepted}")
        self.problems = tuple(problems)


class SelectionError(HoldfastError, ValueError):
    """A `select=` or `rename=` cannot be done; says what it found and what is there."""


class PlacementError(HoldfastError, ValueError):
    """An array cannot be put where it was asked for, or where it was; says what would do."""


class NotFinalizedError(HoldfastError, FileNotFoundError, ValueError):
    """A handler saved into this folder, and its `finalize` has not been called since."""


class UnsavableFileError(HoldfastError, ValueError):
    """A handler left something in its folder that cannot be part of a checkpoint."""


class SpoolFullError(HoldfastError, OSError):
    """A handler's files are more than the spool may hold; nothing was committed or restored."""


class ProcessCountError(HoldfastError, ValueError):
    """Other processes saved an object's state than load it; the object was not changed."""


class AlreadyExistsError(HoldfastError, ValueError):
    """Something is registered under that name or for those arguments already."""


class NoEntryError(HoldfastError, KeyError):
    """Nothing is registered there."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoItemError(NoEntryError, AttributeError):
    """A composite has no item of that name, asked for as an attribute."""


class TensorNotFoundError(HoldfastError, KeyError):
    """The target names a tensor that the safetensors files do not have; nothing was loaded."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedOptionError(HoldfastError, NotImplementedError, ValueError):
    """An option's value would have no effect; the message says what is done, and accepted."""


class StorageOptionsError(HoldfastError, ValueError):
    """Leaves cannot be stored as asked; nothing was written.

    Attributes:
        problems: Every such leaf, with its path.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(f"leaves cannot be stored as asked:\n{_listed(problems)}")
        self.problems = tuple(problems)


class NoHandlerError(NoEntryError, UnsupportedLeafError):
    """No handler takes an item, or none is known for one; the message names both.

    Attributes:
        problems: What keeps it from being saved as a PyTree, leaf by leaf.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        shown = f". As a PyTree:\n{_listed(problems)}" if problems else ""
        Exception.__init__(self, message + shown)
        self.problems = tuple(problems)


class ItemNotFoundError(InvalidLayoutError, KeyError):
    """The checkpoint has no item of that name; the message lists those it has."""
