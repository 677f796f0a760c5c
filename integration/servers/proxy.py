"""A proxy that injects faults, in front of any HTTP server.

It forwards every request as it came (path, host and body untouched, so that signatures
hold) unless a rule says otherwise, and keeps a log, which is how requests are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

ACTIONS = ("status", "drop", "drop_after", "truncate", "delay")
_MUTATIONS = ("PUT", "POST", "DELETE", "PATCH")
_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}


@dataclass
class Rule:
    """What happens to some requests.

    Attributes:
        action: `status` (answer without asking the server), `drop` (cut the connection
            before the server sees the request), `drop_after` (the server did it, the reply
            is lost), `truncate` (half a body), `delay` (the server sees it later).
        match: A regular expression on "METHOD /path?query", percent-decoded.
        nth: Only the nth matching request from now on; 0 means every one.
        every: Each time that this many more have matched; 0 means no such rhythm.
        times: How often at most; 0 means always.
        status: For `status`.
        headers: For `status`.
        body: For `status`.
        delay_s: For `delay`.
    """

    action: str
    match: str = ".*"
    nth: int = 0
    every: int = 0
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    delay_s: float = 0.1
    _seen: int = 0
    _done: int = 0

    def applies(self, line: str) -> bool:
        """Counts a request and says whether the rule wants it."""
        if not re.search(self.match, line):
            return False
        self._seen += 1
        if self.nth and self._seen != self.nth:
            return False
        if self.every and self._seen % self.every:
            return False
        return not (self.times and self._done >= self.times)


class FaultProxy:
    """The proxy, served by a thread of its own. All methods are thread-safe."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.rstrip("/")
        self.url = ""
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._requests: list[str] = []

    def add(self, action: str, match: str = ".*", **how: object) -> Rule:
        """Adds a rule; the first that applies to a request is taken."""
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action!r}; known: {ACTIONS}")
        rule = Rule(action, match, **how)  # type: ignore[arg-type]
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forgets the rules and the log."""
        with self._lock:
            self._rules.clear()
            self._requests.clear()

    @property
    def requests(self) -> list[str]:
        """What was asked since `clear`: "METHOD /path?query", percent-decoded."""
        with self._lock:
            return list(self._requests)

    @property
    def mutations(self) -> list[str]:
        """The requests that change something."""
        return [line for line in self.requests if line.startswith(_MUTATIONS)]

    def _judge(self, line: str) -> Rule | None:
        with self._lock:
            self._requests.append(line)
            applying = [rule for rule in self._rules if rule.applies(line)]
            if not applying:
                return None
            applying[0]._done += 1
            return applying[0]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        line = f"{request.method} {urllib.parse.unquote(request.raw_path)}"
        body = await request.read()
        rule = self._judge(line)
        if rule is not None and rule.action == "status":
            return web.Response(status=rule.status, headers=rule.headers, text=rule.body)
        if rule is not None and rule.action == "drop":
            return self._cut(request)
        if rule is not None and rule.action == "delay":
            await asyncio.sleep(rule.delay_s)
        try:
            status, headers, data = await self._ask(request, body)
        except aiohttp.ClientError:  # the server is gone: so it looks to the client
            return self._cut(request)
        if rule is not None and rule.action == "drop_after":
            return self._cut(request)
        reply = web.StreamResponse(status=status)
        for name, value in headers:
            reply.headers.add(name, value)
        if request.method != "HEAD" and status not in (204, 304):
            reply.content_length = len(data)
        await reply.prepare(request)
        if rule is not None and rule.action == "truncate":
            await reply.write(data[: len(data) // 2])
            raise asyncio.CancelledError  # closes the connection, but sends what was written
        if request.method != "HEAD" and data:
            await reply.write(data)
        await reply.write_eof()
        return reply

    async def _ask(
        self, request: web.Request, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = [(n, v) for n, v in request.headers.items() if n.lower() not in _HOP]
        url = URL(self.upstream + request.raw_path, encoded=True)
        async with self._session.request(
            request.method,
            url,
            headers=headers,
            data=io.BytesIO(body) if body else None,
            allow_redirects=False,
        ) as answer:
            data = await answer.read()
            kept = [
                (name, value)
                for name, value in answer.headers.items()
                if name.lower() not in _HOP
                and (name.lower() != "content-length" or request.method == "HEAD")
            ]
            return answer.status, kept, data

    def _cut(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        raise asyncio.CancelledError

    async def _serve(self, started: threading.Event) -> None:
        application = web.Application(client_max_size=1 << 31)
        application.router.add_route("*", "/{path:.*}", self._handle)
        async with aiohttp.ClientSession(
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            # A used connection that breaks would make aiohttp send the request a second time.
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as self._session:
            runner = web.AppRunner(
                application,
                access_log=None,
                handler_cancellation=False,
                auto_decompress=False,
                shutdown_timeout=1,
            )
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"http://127.0.0.1:{port}"
            started.set()
            await self._stop.wait()
            await runner.cleanup()

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._stop = asyncio.Event()
            runner.run(self._serve(started))

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultProxy]:
        """Serves until the block is left."""
        started = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(started,), name="fault proxy", daemon=True
        )
        thread.start()
        if not started.wait(20):
            raise RuntimeError("the proxy does not start")
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(20)


def running_proxy(upstream: str) -> contextlib.AbstractContextManager[FaultProxy]:
    """A proxy in front of `upstream` until the block is left."""
    return FaultProxy(upstream).running()
