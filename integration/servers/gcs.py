"""A strict imitation of Google Cloud Storage: the JSON API, flat and hierarchical.

No packaged emulator enforces `ifGenerationMatch` or has folders, so this one is ours,
written to the published API. Objects are in memory. It was never compared with the real
service; what only that can show is listed in `docs/backends/gcs.md`.

    python -m integration.servers.gcs --port 0
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import google_crc32c
from aiohttp import web

_PAGE = 1000


class Refusal(Exception):
    """An error reply in the API's own shape."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message

    def reply(self) -> web.Response:
        """As HTTP."""
        details = [{"message": self.message, "domain": "global", "reason": self.reason}]
        error = {"code": self.status, "message": self.message, "errors": details}
        return web.json_response({"error": error}, status=self.status)


@dataclass
class Stored:
    """One object."""

    data: bytes
    generation: int
    updated: datetime
    metadata: dict[str, str]


@dataclass
class Bucket:
    """Objects, and in a hierarchical bucket the folders too; names end in `/`."""

    name: str
    hierarchical: bool
    objects: dict[str, Stored] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    last_write: dict[str, float] = field(default_factory=dict)

    def add_parents(self, name: str) -> None:
        """Folders come with what is put into them."""
        if self.hierarchical:
            parts = name.split("/")[:-1]
            self.folders |= {"/".join(parts[:n]) + "/" for n in range(1, len(parts) + 1)}


class GcsServer:
    """The server, on a thread of its own.

    Attributes:
        denied: Permissions that nobody has, such as `storage.buckets.get`.
        onto_existing: What a rename does whose destination exists: `refuse`, `merge` or
            `replace`. The real answer is not documented, so no client may depend on it.
        polls: How often an operation answers "not done" before it is.
        rename_fault: `before` or `after`: the next rename is cut before or after its effect;
            `fail`: its operation ends in an error.
        rate_limited: Refuse a second write to one object within a second, as documented.
        token: If set, requests without it are refused with 401.
    """

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.denied: set[str] = set()
        self.onto_existing = "refuse"
        self.polls = 1
        self.rename_fault = ""
        self.rate_limited = False
        self.token = ""
        self.requests: list[str] = []
        self.url = ""
        self._generations = itertools.count(time.time_ns() // 1000)
        self._sessions: dict[str, dict[str, Any]] = {}

    def make_bucket(self, name: str, *, hierarchical: bool = False) -> str:
        """Creates a bucket."""
        self.buckets[name] = Bucket(name, hierarchical)
        return name

    # --- objects -------------------------------------------------------------------------

    def _bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise Refusal(404, "notFound", "The specified bucket does not exist.")
        return self.buckets[name]

    def _need(self, permission: str, what: str) -> None:
        if permission in self.denied:
            raise Refusal(
                403,
                "forbidden",
                f"tester does not have {permission} access to {what}. Permission "
                f"'{permission}' denied on resource (or it may not exist).",
            )

    def _find(self, bucket: Bucket, name: str, query: Mapping[str, str]) -> Stored:
        found = bucket.objects.get(name)
        wanted = query.get("generation")
        if found is None or (wanted and int(wanted) != found.generation):
            raise Refusal(404, "notFound", f"No such object: {bucket.name}/{name}")
        return found

    def _check(self, query: Mapping[str, str], found: Stored | None, *, read: bool = False) -> None:
        generation = found.generation if found else 0
        match = query.get("ifGenerationMatch")
        unlike = query.get("ifGenerationNotMatch")
        meta = query.get("ifMetagenerationMatch")
        if (match is not None and int(match) != generation) or (meta is not None and meta != "1"):
            message = "At least one of the pre-conditions you specified did not hold."
            raise Refusal(412, "conditionNotMet", message)
        if unlike is not None and int(unlike) == generation:
            raise Refusal(304 if read else 412, "conditionNotMet", "not modified")

    def _write(
        self,
        bucket: Bucket,
        name: str,
        data: bytes,
        query: Mapping[str, str],
        metadata: dict[str, str],
    ) -> web.Response:
        self._need("storage.objects.create", f"{bucket.name}/{name}")
        self._check(query, bucket.objects.get(name))
        if name in bucket.objects:
            self._need("storage.objects.delete", f"{bucket.name}/{name}")
        now = time.monotonic()
        if self.rate_limited and now - bucket.last_write.get(name, -9.0) < 1.0:
            raise Refusal(429, "rateLimitExceeded", f"The object {name} exceeded the rate limit.")
        bucket.last_write[name] = now
        stored = Stored(data, next(self._generations), datetime.now(UTC), metadata)
        bucket.objects[name] = stored
        bucket.add_parents(name)
        return web.json_response(self._resource(bucket, name, stored))

    def _resource(self, bucket: Bucket, name: str, stored: Stored) -> dict[str, Any]:
        quoted = urllib.parse.quote(name, safe="")
        return {
            "kind": "storage#object",
            "id": f"{bucket.name}/{name}/{stored.generation}",
            "name": name,
            "bucket": bucket.name,
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.data)),
            "updated": stored.updated.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "timeCreated": stored.updated.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "md5Hash": _md5(stored.data),
            "crc32c": _crc32c(stored.data),
            "etag": f"CJ{stored.generation}",
            "metadata": stored.metadata,
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "mediaLink": f"{self.url}/download/storage/v1/b/{bucket.name}/o/{quoted}?alt=media",
        }

    def _media(self, request: web.Request, stored: Stored) -> web.Response:
        headers = {
            "x-goog-generation": str(stored.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={_crc32c(stored.data)},md5={_md5(stored.data)}",
            "Last-Modified": format_datetime(stored.updated, usegmt=True),
            "Content-Type": "application/octet-stream",
        }
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        size = len(stored.data)
        if span is None or size == 0:
            if span is not None and span[1] not in ("", "0"):
                return web.Response(status=416, headers=headers)
            return web.Response(body=stored.data, headers=headers)
        start = int(span[1]) if span[1] else max(0, size - int(span[2]))
        stop = min(size, int(span[2]) + 1) if span[1] and span[2] else size
        if start >= size:
            return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return web.Response(status=206, body=stored.data[start:stop], headers=headers)

    async def object(self, request: web.Request) -> web.Response:
        """GET (metadata or media), DELETE, PATCH."""
        bucket = self._bucket(request.match_info["bucket"])
        name = _name(request, "o")
        query = request.query
        found = bucket.objects.get(name)
        if request.method == "DELETE":
            self._need("storage.objects.delete", f"{bucket.name}/{name}")
            self._find(bucket, name, query)
            self._check(query, found)
            del bucket.objects[name]
            return web.Response(status=204)
        self._need("storage.objects.get", f"{bucket.name}/{name}")
        if request.method == "PATCH":
            self._find(bucket, name, query).metadata.update((await request.json())["metadata"])
        else:
            self._check(query, found, read=True)
        stored = self._find(bucket, name, query)
        if query.get("alt") == "media":
            return self._media(request, stored)
        return web.json_response(self._resource(bucket, name, stored))

    async def upload(self, request: web.Request) -> web.Response:
        """POST or PUT of the three kinds of upload."""
        bucket = self._bucket(request.match_info["bucket"])
        query = request.query
        body = await request.read()
        if "upload_id" in query:
            return self._continue(request, body)
        kind = query.get("uploadType")
        if kind == "media":
            return self._write(bucket, query["name"], body, query, {})
        if kind == "multipart":
            about, data = _parts(request.headers["Content-Type"], body)
            name = query.get("name") or about["name"]
            return self._write(bucket, name, data, query, about.get("metadata") or {})
        about = json.loads(body or b"{}")
        name = query.get("name") or about["name"]
        self._need("storage.objects.create", f"{bucket.name}/{name}")
        self._check(query, bucket.objects.get(name))
        session = uuid.uuid4().hex
        self._sessions[session] = {
            "bucket": bucket, "name": name, "query": dict(query), "data": bytearray(),
            "metadata": about.get("metadata") or {},
        }  # fmt: skip
        base = f"{self.url}/upload/storage/v1/b/{bucket.name}/o"
        where = f"{base}?uploadType=resumable&upload_id={session}"
        return web.Response(headers={"Location": where, "X-GUploader-UploadID": session})

    def _continue(self, request: web.Request, body: bytes) -> web.Response:
        session = self._sessions.get(request.query["upload_id"])
        if session is None:
            raise Refusal(404, "notFound", "no such upload")
        span = re.fullmatch(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("Content-Range", "")
        )
        if "done" in session:  # whoever lost the reply may ask again
            return web.json_response(session["done"])
        held = session["data"]
        if span is None or span[1]:
            start = int(span[1]) if span else 0
            del held[start:]
            held += body
        total = span[3] if span else str(len(held))
        if total == "*" or len(held) < int(total):
            ranges = {"Range": f"bytes=0-{len(held) - 1}"} if held else {}
            return web.Response(status=308, headers=ranges)
        reply = self._write(
            session["bucket"], session["name"], bytes(held), session["query"], session["metadata"]
        )
        session["done"] = json.loads(reply.body)  # type: ignore[arg-type]
        held.clear()
        return reply

    async def cancel_upload(self, request: web.Request) -> web.Response:
        """DELETE of a resumable upload."""
        self._sessions.pop(request.query.get("upload_id", ""), None)
        return web.Response(status=499)

    async def listing(self, request: web.Request) -> web.Response:
        """Objects and prefixes, a page at a time."""
        bucket = self._bucket(request.match_info["bucket"])
        self._need("storage.objects.list", bucket.name)
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = set(bucket.objects)
        if query.get("includeFoldersAsPrefixes") == "true":
            names |= bucket.folders
        first, last = query.get("startOffset", ""), query.get("endOffset", "")
        entries = []
        for name in sorted(n for n in names if n.startswith(prefix)):
            if (first and name < first) or (last and name >= last):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entry = (name[: cut + 1], True) if cut >= 0 else (name, False)
            if entry not in entries[-1:] and not (name in bucket.folders and cut < 0):
                entries.append(entry)
        start = int(query.get("pageToken") or 0)
        stop = start + min(int(query.get("maxResults") or _PAGE), _PAGE)
        reply: dict[str, Any] = {"kind": "storage#objects"}
        items = [
            self._resource(bucket, name, bucket.objects[name])
            for name, is_prefix in entries[start:stop]
            if not is_prefix
        ]
        prefixes = [name for name, is_prefix in entries[start:stop] if is_prefix]
        reply |= {"items": items} if items else {}
        reply |= {"prefixes": prefixes} if prefixes else {}
        reply |= {"nextPageToken": str(stop)} if stop < len(entries) else {}
        return web.json_response(reply)

    async def copy(self, request: web.Request) -> web.Response:
        """rewriteTo and copyTo, in one step."""
        found = re.fullmatch(
            r".*/b/([^/]+)/o/([^/]+)/(rewriteTo|copyTo)/b/([^/]+)/o/([^/?]+)",
            request.raw_path.partition("?")[0],
        )
        assert found is not None
        source, name, kind, target, copied = (urllib.parse.unquote(part) for part in found.groups())
        stored = self._find(self._bucket(source), name, {})
        reply = self._write(
            self._bucket(target), copied, stored.data, request.query, dict(stored.metadata)
        )
        if kind == "copyTo":
            return reply
        size = str(len(stored.data))
        resource = json.loads(reply.body)  # type: ignore[arg-type]
        return web.json_response(
            {"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size,
             "objectSize": size, "resource": resource}
        )  # fmt: skip

    # --- buckets and folders -------------------------------------------------------------

    async def bucket(self, request: web.Request) -> web.Response:
        """GET of a bucket; POST creates one."""
        if request.method == "POST":
            about = await request.json()
            name = about["name"]
            hierarchical = bool((about.get("hierarchicalNamespace") or {}).get("enabled"))
            if name in self.buckets:
                raise Refusal(409, "conflict", "You already own this bucket.")
            uniform = (about.get("iamConfiguration") or {}).get("uniformBucketLevelAccess") or {}
            if hierarchical and not uniform.get("enabled"):
                message = "Hierarchical namespace needs uniform bucket-level access."
                raise Refusal(400, "invalid", message)
            self.make_bucket(name, hierarchical=hierarchical)
        else:
            name = request.match_info["bucket"]
            found = self._bucket(name)
            self._need("storage.buckets.get", name)
            hierarchical = found.hierarchical
        return web.json_response(
            {"kind": "storage#bucket", "id": name, "name": name, "location": "US",
             "hierarchicalNamespace": {"enabled": hierarchical}}
        )  # fmt: skip

    async def layout(self, request: web.Request) -> web.Response:
        """storageLayout: whether a bucket is hierarchical."""
        bucket = self._bucket(request.match_info["bucket"])
        self._need("storage.objects.list", bucket.name)
        self._need("storage.buckets.getStorageLayout", bucket.name)
        reply: dict[str, Any] = {"kind": "storage#storageLayout", "bucket": bucket.name}
        reply |= {"location": "US", "locationType": "region"}
        reply |= {"hierarchicalNamespace": {"enabled": bucket.hierarchical}}
        return web.json_response(reply)

    def _hierarchical(self, request: web.Request) -> Bucket:
        bucket = self._bucket(request.match_info["bucket"])
        if not bucket.hierarchical:
            raise Refusal(409, "conflict", "The bucket does not have a hierarchical namespace.")
        return bucket

    def _folder(self, bucket: Bucket, name: str) -> dict[str, Any]:
        return {
            "kind": "storage#folder",
            "bucket": bucket.name,
            "name": name,
            "metageneration": "1",
        }

    async def folders(self, request: web.Request) -> web.Response:
        """POST creates, GET lists."""
        bucket = self._hierarchical(request)
        if request.method == "GET":
            self._need("storage.folders.list", bucket.name)
            prefix = request.query.get("prefix", "")
            names = sorted(name for name in bucket.folders if name.startswith(prefix))
            start = int(request.query.get("pageToken") or 0)
            stop = start + min(int(request.query.get("pageSize") or _PAGE), _PAGE)
            reply: dict[str, Any] = {"kind": "storage#folders"}
            reply["items"] = [self._folder(bucket, name) for name in names[start:stop]]
            reply |= {"nextPageToken": str(stop)} if stop < len(names) else {}
            return web.json_response(reply)
        self._need("storage.folders.create", bucket.name)
        name = (await request.json())["name"].rstrip("/") + "/"
        if name in bucket.folders:
            raise Refusal(409, "conflict", "The folder exists.")
        above = name.rstrip("/").rpartition("/")[0]
        if above and f"{above}/" not in bucket.folders:
            if request.query.get("recursive") != "true":
                raise Refusal(400, "failedPrecondition", "The parent folder does not exist.")
            bucket.add_parents(name.rstrip("/"))
        bucket.folders.add(name)
        return web.json_response(self._folder(bucket, name))

    async def folder(self, request: web.Request) -> web.Response:
        """GET and DELETE of one folder."""
        bucket = self._hierarchical(request)
        name = _name(request, "folders").rstrip("/") + "/"
        verb = "delete" if request.method == "DELETE" else "get"
        self._need(f"storage.folders.{verb}", f"{bucket.name}/{name}")
        if name not in bucket.folders:
            raise Refusal(404, "notFound", f"The folder {name} does not exist.")
        if verb == "get":
            return web.json_response(self._folder(bucket, name))
        inside = [n for n in (*bucket.objects, *bucket.folders) if n.startswith(name) and n != name]
        if inside:
            raise Refusal(409, "conflict", "The folder is not empty.")
        bucket.folders.remove(name)
        return web.Response(status=204)

    async def rename(self, request: web.Request) -> web.Response:
        """The long-running rename: its effect is one step."""
        bucket = self._hierarchical(request)
        found = re.fullmatch(
            r".*?/b/[^/]+/folders/([^/]+)/renameTo/folders/([^/]+)",
            request.raw_path.partition("?")[0],
        )
        assert found is not None
        source, target = (urllib.parse.unquote(part).rstrip("/") + "/" for part in found.groups())
        self._need("storage.folders.rename", f"{bucket.name}/{source}")
        fault, self.rename_fault = self.rename_fault, ""
        if fault == "before":
            return _cut(request)
        if source not in bucket.folders:
            raise Refusal(404, "notFound", f"The folder {source} does not exist.")
        above = target.rstrip("/").rpartition("/")[0]
        if above and f"{above}/" not in bucket.folders:
            raise Refusal(
                400, "failedPrecondition", "The parent of the destination does not exist."
            )
        if target in bucket.folders and self.onto_existing == "refuse":
            raise Refusal(409, "conflict", f"The folder {target} exists.")
        name = f"projects/_/buckets/{bucket.name}/operations/{uuid.uuid4().hex}"
        operation: dict[str, Any] = {"kind": "storage#operation", "name": name, "done": False}
        bucket.operations[name.rpartition("/")[2]] = operation | {"polls": self.polls}
        if fault == "fail":
            bucket.operations[name.rpartition("/")[2]]["error"] = {
                "code": 13,
                "message": "internal",
            }
        else:
            self._move(bucket, source, target)
        return _cut(request) if fault == "after" else web.json_response(operation)

    def _move(self, bucket: Bucket, source: str, target: str) -> None:
        if self.onto_existing == "replace":
            bucket.objects = {n: o for n, o in bucket.objects.items() if not n.startswith(target)}
        for name in [n for n in bucket.objects if n.startswith(source)]:
            bucket.objects[target + name[len(source) :]] = bucket.objects.pop(name)
        moved = {n for n in bucket.folders if n.startswith(source)}
        bucket.folders -= moved
        bucket.folders |= {target + n[len(source) :] for n in moved}

    async def operation(self, request: web.Request) -> web.Response:
        """One look at an operation."""
        bucket = self._hierarchical(request)
        found = bucket.operations.get(request.match_info["operation"])
        if found is None:
            raise Refusal(404, "notFound", "no such operation")
        found["polls"] -= 1
        found["done"] = found["polls"] < 0
        shown = {k: v for k, v in found.items() if k != "polls" and (k != "error" or found["done"])}
        return web.json_response(shown)

    # --- serving -------------------------------------------------------------------------

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {urllib.parse.unquote(request.raw_path)}")
        try:
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise Refusal(401, "authError", "Invalid Credentials")
            reply: web.StreamResponse = await handler(request)
        except Refusal as refusal:
            return refusal.reply()
        return reply

    def application(self) -> web.Application:
        """The routes."""
        made = web.Application(client_max_size=1 << 31, middlewares=[self._answer])
        add = made.router.add_route
        for base in ("/storage/v1", "/download/storage/v1"):
            add("*", base + "/b/{bucket}/o/{name:.+}/{verb:rewriteTo|copyTo}/{rest:.+}", self.copy)
            add("*", base + "/b/{bucket}/o/{name:.+}", self.object)
        add("GET", "/storage/v1/b/{bucket}/o", self.listing)
        add("DELETE", "/upload/storage/v1/b/{bucket}/o", self.cancel_upload)
        add("*", "/upload/storage/v1/b/{bucket}/o", self.upload)
        add("*", "/resumable/upload/storage/v1/b/{bucket}/o", self.upload)
        add("POST", "/storage/v1/b", self.bucket)
        add("GET", "/storage/v1/b/{bucket}", self.bucket)
        add("GET", "/storage/v1/b/{bucket}/storageLayout", self.layout)
        add("*", "/storage/v1/b/{bucket}/folders", self.folders)
        add(
            "POST", "/storage/v1/b/{bucket}/folders/{name:.+}/renameTo/folders/{to:.+}", self.rename
        )
        add("*", "/storage/v1/b/{bucket}/folders/{name:.+}", self.folder)
        add("GET", "/storage/v1/b/{bucket}/operations/{operation}", self.operation)
        return made

    async def _serve(self, port: int, started: threading.Event) -> None:
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _run(self, port: int, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop, self._stop = runner.get_loop(), asyncio.Event()
            runner.run(self._serve(port, started))

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[GcsServer]:
        """Serves until the block is left."""
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(port, started), daemon=True)
        thread.start()
        if not started.wait(20):
            raise RuntimeError("the GCS server does not start")
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(20)


def _name(request: web.Request, after: str) -> str:
    """What is named after the bucket, which itself may be called "folders" or "o"."""
    path = request.raw_path.partition("?")[0]
    found = re.search(rf"/b/[^/]+/{after}/(.+)$", path)
    assert found is not None
    return urllib.parse.unquote(found[1])


def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    raise asyncio.CancelledError


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of a multipart upload; some clients end lines with LF alone."""
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    assert found is not None
    pieces = body.split(b"--" + found[1].encode())
    about, data = (re.split(rb"\r?\n\r?\n", piece, maxsplit=1)[1] for piece in pieces[1:3])
    return json.loads(about), re.sub(rb"\r?\n\Z", b"", data)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def main() -> None:
    """Serves until killed; the first line printed is the URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append", default=[])
    parser.add_argument("--hns-bucket", action="append", default=[])
    chosen = parser.parse_args()
    server = GcsServer()
    for name in chosen.bucket:
        server.make_bucket(name)
    for name in chosen.hns_bucket:
        server.make_bucket(name, hierarchical=True)
    with server.running(chosen.port):
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
