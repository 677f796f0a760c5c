"""The header of a safetensors file: read strictly, and written as the format wants it.

A file is eight bytes with the length of the header, the header, and the tensors' bytes, which
follow each other without a gap. What the format's own library refuses is refused here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.safetensors.dtypes import DTYPES, bytes_of
from holdfast_metadata import MetadataError, parse_json

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000
METADATA = "__metadata__"
_ALIGNMENT = 8
_RANK_LIMIT = 64
_BYTES_LIMIT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: Its name.
        dtype: Its dtype, as the format calls it.
        shape: Its shape.
        start: Of its bytes, from the start of the file.
        stop: End of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        tensors: By name.
        metadata: The texts under `__metadata__`.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


class BadHeader(Exception):
    """A header is not what the format says; turned into an error that names the file.

    Attributes:
        tensor: The tensor it is about, if it is about one.
        sound: Whether the file may be sound, with something in it that we cannot hold.
    """

    def __init__(self, message: str, *, tensor: str = "", sound: bool = False) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.sound = sound


def header_length(start: bytes, size: int) -> int:
    """The length of the header, from the first eight bytes of a file of `size` bytes.

    Raises:
        BadHeader: There is no header of that length.
    """
    if len(start) < LENGTH_BYTES:
        raise BadHeader(f"it has {size} bytes, too few for a header")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > HEADER_LIMIT:
        raise BadHeader(f"its header would have {length} bytes, the format allows {HEADER_LIMIT}")
    if LENGTH_BYTES + length > size:
        raise BadHeader(f"it is cut off: its header has {length} bytes, the file {size}")
    return length


def parse_header(data: bytes, size: int) -> Header:
    """Reads the header of a file of `size` bytes.

    Raises:
        BadHeader: It is damaged; says where.
    """
    if not data.startswith(b"{"):
        raise BadHeader("its header does not start with '{'")
    try:
        document = parse_json(data, source="its header")
    except MetadataError as error:
        raise BadHeader(str(error)) from error
    metadata = _texts(document.pop(METADATA, None))
    begin = LENGTH_BYTES + len(data)
    tensors = {name: _tensor(name, entry, begin) for name, entry in document.items()}
    _require_gapless(tensors.values(), begin, size)
    return Header(tensors, metadata)


def _texts(value: Any) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadHeader(f"{METADATA} is not an object of texts")
    return value


def _tensor(name: str, entry: Any, begin: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise BadHeader("it is described by no object", tensor=name)
    dtype = entry.get("dtype")
    if not isinstance(dtype, str):
        raise BadHeader(f"its dtype is {dtype!r:.60}, not a text", tensor=name)
    if dtype not in DTYPES:
        raise BadHeader(
            f"its dtype {dtype!r:.60} is unknown; known are {', '.join(DTYPES)}",
            tensor=name,
            sound=True,
        )
    shape = _naturals(entry.get("shape"), "shape", name)
    start, stop = _offsets(entry.get("data_offsets"), name)
    # In this order: a product of many huge numbers would itself take for ever.
    if len(shape) > _RANK_LIMIT or math.prod(max(1, n) for n in shape) * 16 > _BYTES_LIMIT:
        raise BadHeader("its shape is more than an array can have", tensor=name, sound=True)
    needed = bytes_of(dtype, shape)
    if needed is None:
        raise BadHeader(f"{dtype}{list(shape)} does not end with a byte", tensor=name)
    if stop - start != needed:
        raise BadHeader(
            f"{dtype}{list(shape)} takes {needed} bytes, its offsets give it {stop - start}",
            tensor=name,
        )
    return TensorInfo(name, dtype, shape, begin + start, begin + stop)


def _offsets(value: Any, name: str) -> tuple[int, int]:
    offsets = _naturals(value, "data_offsets", name)
    if len(offsets) != 2:
        raise BadHeader(f"its data_offsets are {len(offsets)} numbers, not two", tensor=name)
    return offsets[0], offsets[1]


def _naturals(value: Any, what: str, name: str) -> tuple[int, ...]:
    good = isinstance(value, list) and all(
        type(n) is int and 0 <= n <= _BYTES_LIMIT for n in value[: _RANK_LIMIT + 1]
    )
    if not good:
        raise BadHeader(f"its {what} is no list of natural numbers: {value!r:.60}", tensor=name)
    return tuple(value[: _RANK_LIMIT + 1])


def _require_gapless(tensors: Iterable[TensorInfo], begin: int, size: int) -> None:
    """Every byte belongs to exactly one tensor, as the format demands."""
    end = begin
    for tensor in sorted(tensors, key=lambda t: (t.start, t.stop)):
        if tensor.start < end:
            raise BadHeader("its bytes overlap those of another tensor", tensor=tensor.name)
        if tensor.start > end:
            raise BadHeader(
                f"{tensor.start - end} bytes before it are nobody's", tensor=tensor.name
            )
        end = tensor.stop
    if end > size:
        raise BadHeader(f"it is cut off: its tensors end at byte {end}, the file at {size}")
    if end < size:
        raise BadHeader(f"its last {size - end} bytes belong to no tensor")


def entry_size(name: str, shape: tuple[int, ...]) -> int:
    """An upper bound of the bytes that a tensor adds to a header."""
    return len(json.dumps(name)) + sum(len(str(n)) + 1 for n in shape) + 120


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The start of a file, up to the tensors' bytes, which are aligned to eight bytes.

    Args:
        tensors: Name, dtype and shape, in the order of their bytes.
        metadata: Texts for `__metadata__`.

    Examples:
        >>> encode_header([("w", "F32", (2,))], {})[8:]
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '
    """
    document: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        size = bytes_of(dtype, shape)
        assert size is not None
        document[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [end, end + size],
        }
        end += size
    data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    data += b" " * (-len(data) % _ALIGNMENT)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data
