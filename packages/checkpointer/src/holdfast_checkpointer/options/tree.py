"""How a PyTree is described and matched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class PyTreeMetadataOptions:
    """What is recorded of a tree.

    Attributes:
        support_rich_types: Tuples, named tuples and typed keys are recorded in either case;
            both values are accepted.
    """

    support_rich_types: bool = False


@dataclass(frozen=True, kw_only=True)
class PyTreeSaveOptions:
    """How a tree is described; also called `PyTreeOptions.Saving`.

    Attributes:
        pytree_metadata_options: See `PyTreeMetadataOptions`.
    """

    pytree_metadata_options: PyTreeMetadataOptions = field(default_factory=PyTreeMetadataOptions)


@dataclass(frozen=True, kw_only=True)
class PyTreeLoadOptions:
    """How a target is matched; also called `PyTreeOptions.Loading`.

    Attributes:
        partial_load: The target may leave out leaves that were saved. A leaf of the target that
            was not saved is an error in either case.
    """

    partial_load: bool = False


@dataclass(frozen=True, kw_only=True)
class PyTreeOptions:
    """How a PyTree is described and matched.

    Attributes:
        saving: See `PyTreeSaveOptions`.
        loading: See `PyTreeLoadOptions`.
    """

    Saving: ClassVar[type[PyTreeSaveOptions]] = PyTreeSaveOptions
    Loading: ClassVar[type[PyTreeLoadOptions]] = PyTreeLoadOptions

    saving: PyTreeSaveOptions = field(default_factory=PyTreeSaveOptions)
    loading: PyTreeLoadOptions = field(default_factory=PyTreeLoadOptions)
