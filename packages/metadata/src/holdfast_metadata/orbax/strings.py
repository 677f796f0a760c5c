"""`_strings.json`: the values of string leaves, under JSON-pointer names.

Orbax stores a string at the JSON pointer "/" + name without escaping the name, so `s/t`
is nested and `~1` stands for a slash. Some names cannot be stored at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.json_codec import canonical_json, parse_json

STRINGS_FILE = "_strings.json"
_LONE_TILDE = re.compile(r"~(?![01])")


@dataclass(frozen=True, slots=True)
class StringsFile:
    """The strings of an item.

    Attributes:
        strings: By parameter name.

    Examples:
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
                    raise MetadataError(
                        f"the string {name!r} lies below another string: in {STRINGS_FILE}, "
                        "'/' in a name separates levels"
                    )
            if last in node:
                raise MetadataError(
                    f"the string {name!r} lies where another string is, or above one: in "
                    f"{STRINGS_FILE}, '/' in a name separates levels"
                )
            node[last] = value
        return canonical_json(root)

    @classmethod
    def lookup(
        cls, data: bytes, names: Iterable[str], *, source: str = STRINGS_FILE
    ) -> StringsFile:
        """Finds the strings of the given names, which the file alone does not tell.

        Raises:
            MetadataError: One is not there, is no string, or its name is no JSON pointer.

        Examples:
            >>> StringsFile.lookup(b'{"a/b":"x","a":{"b":"y"}}', ["a~1b", "a/b"]).strings
            {'a~1b': 'x', 'a/b': 'y'}
        """
        root = parse_json(data, source=source, lenient=True)
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
