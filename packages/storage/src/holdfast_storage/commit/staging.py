"""The area of one attempt: where handlers write, and the list of what they wrote."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping

from holdfast_metadata import (
    ATTEMPT_FILE,
    COMMIT_FILE,
    MANIFEST_FILE,
    ManifestEntry,
    digest_bytes,
)
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.streaming import digest_object
from holdfast_storage.values import IfAbsent, KvTarget, ObjectInfo

# The protocol's own files are no part of what was saved.
PROTOCOL_FILES = frozenset((ATTEMPT_FILE, COMMIT_FILE, MANIFEST_FILE))
_AT_ONCE = 8


class StagingArea:
    """A `WriteArea` that remembers what went through it. Thread-safe."""

    def __init__(
        self, backend: StorageBackend, prefix: str, *, parent: StagingArea | None = None
    ) -> None:
        self._backend = backend
        self._prefix = prefix
        self._top: StagingArea = parent._top if parent is not None else self
        if parent is None:
            self._lock = threading.Lock()
            self._files: dict[str, ManifestEntry] = {}
            self._handed_out: set[str] = set()
            self._folders: set[str] = set()

    @property
    def label(self) -> str:
        """Where this is, for messages."""
        return f"{self._backend.root.rstrip('/')}/{self._prefix}"

    def child(self, name: str) -> StagingArea:
        """A scope below this one; no I/O."""
        return StagingArea(self._backend, self._key(name), parent=self)

    async def put(self, name: str, data: bytes) -> None:
        """Stores a small file, once; durable when the attempt is sealed.

        Raises:
            ValueError: The name was used before: no key is written twice in a save.
        """
        key = self._key(name)
        path = keys.relative(key, self._top._prefix)
        with self._top._lock:
            if path in self._top._files:
                raise ValueError(f"{path!r} is written twice in one save")
            self._top._files[path] = ManifestEntry(path, len(data), digest_bytes(data))
        # Where programs write with `open`, one of theirs may have the name already.
        opened = any(keys.is_under(key, folder) for folder in self._top._folders)
        try:
            await self._backend.put(
                key, data, condition=IfAbsent() if opened else None, durable=False
            )
        except errors.ObjectExistsError as error:
            raise ValueError(f"{path!r} is written twice in one save") from error

    def make_folder(self, name: str) -> bool:
        """Makes an empty folder; False, with nothing done, where the store has none."""
        path = self._backend.local_path(self._key(name))
        if path is None:
            return False
        os.makedirs(path, exist_ok=True)
        return True

    async def link(self, name: str, source: str, entry: ManifestEntry) -> bool:
        """Stores a file by linking an object that is on the store already.

        Args:
            name: Where in this scope.
            source: The object's key.
            entry: Its size and digest.

        Returns:
            False, with nothing done, where the store cannot.
        """
        key = self._key(name)
        if not await self._backend.link(source, key):
            return False
        path = keys.relative(key, self._top._prefix)
        with self._top._lock:
            self._top._files[path] = ManifestEntry(path, entry.size, entry.digest)
        return True

    async def get(self, name: str) -> bytes:
        """Reads back what was put."""
        return await self._backend.get(self._key(name))

    def kv_target(self, name: str = "") -> KvTarget:
        """How TensorStore writes below this scope; what it writes is listed at the seal."""
        key = self._key(name) if name else self._prefix
        with self._top._lock:
            self._top._handed_out.add(key)
        return self._backend.kv_target(key)

    def local_path(self) -> str | None:
        """See `WriteArea.local_path`."""
        path = self._backend.local_path(self._prefix)
        if path is not None:
            with self._top._lock:
                self._top._folders.add(self._prefix)
        return path

    async def files(self) -> Mapping[str, int]:
        """See `WriteArea.files`."""
        walked = self._backend.walk(self._prefix)
        return {keys.relative(info.key, self._prefix): info.size async for info in walked}

    async def entries(self) -> tuple[ManifestEntry, ...]:
        """Every file that went through the area, with digests where they are known."""
        top = self._top
        found = dict(top._files)
        for prefix in sorted(top._folders):
            for path, entry in (await self._written_directly(prefix, found)).items():
                found.setdefault(path, entry)
        for prefix in sorted(top._handed_out):
            async for info in self._backend.walk(prefix):
                path = keys.relative(info.key, top._prefix)
                if path in PROTOCOL_FILES:
                    continue
                found.setdefault(path, ManifestEntry(path, info.size))
        return tuple(found[path] for path in sorted(found))

    async def _written_directly(
        self, prefix: str, known: Mapping[str, ManifestEntry]
    ) -> dict[str, ManifestEntry]:
        """The files below a folder that programs wrote into, with their digests."""
        top = self._top._prefix
        limit = asyncio.Semaphore(_AT_ONCE)

        async def digested(info: ObjectInfo) -> ManifestEntry:
            async with limit:
                digest = await digest_object(self._backend, info.key, info.size)
            return ManifestEntry(keys.relative(info.key, top), info.size, digest)

        infos = [
            info
            async for info in self._backend.walk(prefix)
            if keys.relative(info.key, top) not in PROTOCOL_FILES | known.keys()
        ]
        entries = await asyncio.gather(*map(digested, infos))
        return {entry.path: entry for entry in entries}

    def _key(self, name: str) -> str:
        keys.check_key(name, root=self.label)
        return keys.join(self._prefix, name)
