"""Backends on our server, and what may stand between the two."""

import contextlib
import http.server
import threading

import pytest

from holdfast_gcs import GcsBackend, detection
from integration.servers.proxy import running_proxy


@pytest.fixture(autouse=True)
def ask_again():
    """Each test asks its own server what its buckets are."""
    detection._answers.clear()


@pytest.fixture
async def opened(gcs):
    """Opens backends, and closes them after the test."""
    made = []

    def make(bucket, **options):
        made.append(GcsBackend(f"gs://{bucket}/run", {"endpoint_url": gcs.url} | options))
        return made[-1]

    yield make
    for backend in made:
        await backend.aclose()


@pytest.fixture
def proxied(gcs):
    """A fault proxy in front of the server."""
    with running_proxy(gcs.url) as proxy:
        yield proxy


@pytest.fixture
def uploads_proxied(gcs, proxied, monkeypatch):
    """Upload sessions go through the proxy too: the service says where they are."""
    monkeypatch.setattr(gcs, "url", proxied.url)
    return proxied


@pytest.fixture
def flat(gcs, bucket_name):
    return gcs.make_bucket(bucket_name)


@pytest.fixture
def hierarchical(gcs, bucket_name):
    return gcs.make_bucket(bucket_name, hierarchical=True)


@pytest.fixture
def answering():
    """Starts servers that give every request the same answer."""
    with contextlib.ExitStack() as servers:
        yield lambda status, body, headers=(): servers.enter_context(_server(status, body, headers))


@contextlib.contextmanager
def _server(status, body, headers):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
