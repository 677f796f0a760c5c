"""Safetensors files on any store, made by the real library, and a store that counts reads."""

import json
import uuid

import safetensors.numpy

from holdfast_storage import locate, register
from holdfast_storage.loop import get_loop
from holdfast_storage.testing import FaultyBackend


def put(path, data):
    """Stores bytes at a path or URL."""
    backend, key = locate(path)
    get_loop().run(backend.put(key, data))


def get(path):
    """The bytes at a path or URL."""
    backend, key = locate(path)
    return get_loop().run(backend.get(key))


def names(path):
    """What lies below a path or URL, at any depth."""
    backend, key = locate(path)

    async def walk():
        return sorted([info.key.removeprefix(key + "/") async for info in backend.walk(key)])

    return get_loop().run(walk())


def write(path, tensors, metadata=None):
    """Stores tensors as the real library writes them."""
    put(path, safetensors.numpy.save(tensors, metadata))


def raw(header, data=b""):
    """A file with this header, an object or bytes."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    """A tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class CountingBackend(FaultyBackend):
    """Keeps the byte ranges that were read."""

    def __init__(self, inner):
        super().__init__(inner, reads=True)
        self.ranges = []

    async def get(self, key, *, byte_range=None):
        data = await super().get(key, byte_range=byte_range)
        self.ranges.append((key, byte_range.start if byte_range else 0, len(data)))
        return data

    def bytes_read(self):
        """Bytes of every read after the header's."""
        return sum(size for _, start, size in self.ranges if start)


def counted():
    """A backend that counts, and the URL of a folder on it."""
    scheme = f"counted{uuid.uuid4().hex}"
    backends = {}

    def opened(url, options):
        inner, _ = locate(f"{url.replace(scheme, 'memory', 1)}/x", options)
        return backends.setdefault(url, CountingBackend(inner))

    register(scheme, opened)
    url = f"{scheme}://{uuid.uuid4().hex}/folder"
    return locate(f"{url}/x")[0], url
