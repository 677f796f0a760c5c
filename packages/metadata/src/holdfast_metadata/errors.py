"""The root of holdfast's exceptions, and the errors of reading a document."""

from __future__ import annotations


class HoldfastError(Exception):
    """Every error that holdfast raises on purpose.

    Each subclass is also a subclass of the builtin that users already catch
    (`ValueError`, `FileNotFoundError`, `FileExistsError`, `KeyError`).
    """


class MetadataError(HoldfastError, ValueError):
    """A document is not what its schema says; nothing was read from it."""


class NotJsonError(MetadataError, TypeError):
    """A caller's value is not one that JSON holds; nothing was written.

    A `TypeError` too, which Orbax raises for it.
    """


class NewerFormatError(MetadataError):
    """A document was written by a newer holdfast than this one.

    It is left exactly as it is: never repaired, collected or taken for absent.
    """
