"""`_strings.json`: the values of string leaves, under JSON-pointer names.

Orbax stores a string at the JSON pointer "/" + name without escaping the name, so `s/t`
is nested and `~1` stands for a slash. Some names cannot be stored at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.json_codec import canonical_json, parse_json

STRINGS_FILE = "_strings.json"
_LONE_TILDE = re.compile(r"~(?![01])")


@dataclass(frozen=True, slots=True)
class StringsFile:
    """A string by parameter name.

    Example:
        >>> StringsFile({"a/b": "x"}).to_bytes()
        b'{"a":{"b":"x"}}'
    """

    strings: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Encodes.

        Raises:
            MetadataError: A name is no JSON pointer, or two names exclude each other.
        """
        root: dict[str, Any] = {}
        for name, value in self.strings.items():
            *above, last = _pointer(name)
            node = root
            for token in above:
                node = node.setdefault(token, {})
                if not isinstance(node, dict):
                    raise MetadataError(f"the string {name!r} lies below another string")
            if last in node:
                raise MetadataError(f"two strings share the place of {name!r}")
            node[last] = value
        return canonical_json(root)

    @classmethod
    def lookup(cls, data: bytes, names: list[str], *, source: str = STRINGS_FILE) -> StringsFile:
        """Finds the strings of the given names.

        Raises:
            MetadataError: One is not there, or is no string.
        """
        root = parse_json(data, source=source)
        found = {}
        for name in names:
            node = root
            for token in _pointer(name):
                node = node.get(token) if isinstance(node, dict) else None
            if not isinstance(node, str):
                raise MetadataError(f"{source} has no string for the leaf {name!r}")
            found[name] = node
        return cls(found)


def _pointer(name: str) -> list[str]:
    if _LONE_TILDE.search(name):
        raise MetadataError(f"{name!r} is no JSON pointer: '~' must be '~0' or '~1'")
    return [token.replace("~1", "/").replace("~0", "~") for token in name.split("/")]
