"""Keys of mappings, with their types: 1, "1", True and 1.0 are four different keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.scalars import decode_scalar, encode_scalar

_KINDS: dict[type, str] = {str: "str", int: "int", bool: "bool", float: "float", bytes: "bytes"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key. Two are equal only if their types are: `Key.of(1) != Key.of(True)`.

    Attributes:
        kind: str, int, bool, float, bytes, none or tuple.
        value: The Python value; for a tuple, a tuple of `Key`.
    """

    kind: str
    value: Any

    @classmethod
    def of(cls, value: Any) -> Key:
        """Describes a Python key.

        Raises:
            MetadataError: It is of a type that a checkpoint cannot hold.

        Examples:
            >>> Key.of((1, "a")).python()
            (1, 'a')
        """
        kind = _KINDS.get(type(value))
        if kind == "float" and value != value:
            raise MetadataError("a key that is NaN equals no key, not even itself")
        if kind is not None:
            return cls(kind, value)
        if value is None:
            return cls("none", None)
        if type(value) is tuple:
            return cls("tuple", tuple(cls.of(item) for item in value))
        raise MetadataError(
            f"a key of type {type(value).__name__} cannot be stored; accepted are str, int, "
            "bool, float, bytes, None and tuples of these"
        )

    def python(self) -> Any:
        """The Python key."""
        if self.kind == "tuple":
            return tuple(item.python() for item in self.value)
        return self.value

    def to_json(self) -> Any:
        """Text stands for itself, everything else is tagged."""
        if self.kind == "tuple":
            return ["tuple", [item.to_json() for item in self.value]]
        if self.kind == "none":
            return ["none"]
        encoded = encode_scalar(self.kind, self.value)
        return encoded if self.kind == "str" and type(encoded) is str else [self.kind, encoded]

    @classmethod
    def from_json(cls, stored: Any) -> Key:
        """The inverse of `to_json`.

        Raises:
            MetadataError: Not a stored key.
        """
        if isinstance(stored, str):
            return cls("str", stored)
        match stored:
            case ["none"]:
                return cls("none", None)
            case ["tuple", [*items]]:
                return cls("tuple", tuple(cls.from_json(item) for item in items))
            case [str(kind), value] if kind in _KINDS.values():
                key = cls(kind, decode_scalar(kind, value))
                if key.value == key.value:  # NaN is no key
                    return key
        raise MetadataError(f"{stored!r:.60} is no stored key")
