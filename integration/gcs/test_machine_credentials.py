"""A job on a machine of Google's: the metadata service signs for both planes.

The service is ours and on the loopback. Users' own logins cannot be shown like this: Google's
libraries ask for their tokens at one address that cannot be set.
"""

import contextlib
import http.server
import json
import threading

import pytest

from integration.stores.test_planes import run

ANSWERS = {
    "/": "",
    "/computeMetadata/v1/universe/universe-domain": "googleapis.com",
    "/computeMetadata/v1/project/project-id": "own",
}
ACCOUNT = {"email": "job@own.iam", "aliases": ["default"], "scopes": ["cloud-platform"]}


@contextlib.contextmanager
def metadata_service(token):
    """Serves until the block is left; yields host and port, and what was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(path)
            if path.endswith("/token"):
                body = {"access_token": token, "expires_in": 3599, "token_type": "Bearer"}
            elif "service-accounts" in path:
                body = ACCOUNT
            else:
                body = ANSWERS.get(path)
            sent = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(404 if body is None else 200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header(
                "Content-Type", "text/plain" if isinstance(body, str) else "application/json"
            )
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("token", ["cloud", "google_default"])
@pytest.mark.parametrize("variable", ["GCE_METADATA_HOST", "GCE_METADATA_ROOT"])
def test_both_planes_sign_as_the_machine(token, variable, gcs, flat, tmp_path):
    gcs.token = "of-the-machine"
    with metadata_service(gcs.token) as (where, asked):
        env = {
            variable: where,
            "GCE_METADATA_IP": where,
            "CLOUDSDK_CONFIG": str(tmp_path),  # no login of this machine's user
            "NO_GCE_CHECK": "false",
        }
        told = run(f"gs://{flat}/run", {"endpoint_url": gcs.url, "token": token}, env)
    assert told.stdout == "agree\n", told.stderr
    assert any(path.endswith("/token") for path in asked)
    assert gcs.token not in told.stderr
