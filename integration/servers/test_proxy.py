"""The fault proxy does what it says, and nothing else."""

import contextlib
import gzip
import http.client
import http.server
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from integration.servers.processes import free_port, listens
from integration.servers.proxy import running_proxy


def client_of(server, endpoint, **config):
    """The official client, which tries once, so that it sees every fault."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **config),
    )


@pytest.fixture
def bucket(ministack, bucket_name):
    return ministack.make_bucket(bucket_name)


@pytest.fixture
def direct(ministack):
    """A client that goes past the proxy."""
    with contextlib.closing(client_of(ministack, ministack.endpoint)) as client:
        yield client


@pytest.fixture
def through(ministack, proxied):
    """A client that goes through the proxy."""
    with contextlib.closing(client_of(ministack, proxied.url)) as client:
        yield client


def keys(client, bucket):
    return [found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


# --- what goes through untouched -------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["plain", "a b", "50%", "a%2Fb", "a+b", "été/雪", "a//b", "a=b&c", "q?x", "h#y", "~.-_"],
)
def test_a_key_arrives_as_it_was_written(through, direct, bucket, key):
    through.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert keys(direct, bucket) == [key]
    assert through.get_object(Bucket=bucket, Key=key)["Body"].read() == b"x"


def test_a_signature_that_the_server_checks_still_holds(rclone, bucket_name):
    rclone.make_bucket(bucket_name)
    with (
        running_proxy(rclone.endpoint) as proxy,
        contextlib.closing(client_of(rclone, proxy.url)) as client,
    ):
        client.put_object(Bucket=bucket_name, Key="a b/c+d", Body=b"signed")
        assert keys(client, bucket_name) == ["a b/c+d"]


def test_large_bodies_go_both_ways(through, direct, bucket):
    data = bytes(range(256)) * (1 << 19)  # 128 MiB
    through.put_object(Bucket=bucket, Key="big", Body=data)
    assert direct.head_object(Bucket=bucket, Key="big")["ContentLength"] == len(data)
    assert through.get_object(Bucket=bucket, Key="big")["Body"].read() == data
    direct.delete_object(Bucket=bucket, Key="big")


def test_replies_keep_what_their_status_means(through, bucket):
    tag = through.put_object(Bucket=bucket, Key="k", Body=b"0123456789")["ETag"]
    head = through.head_object(Bucket=bucket, Key="k")
    assert (head["ContentLength"], head["ETag"]) == (10, tag)
    part = through.get_object(Bucket=bucket, Key="k", Range="bytes=2-4")
    assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert (part["ContentRange"], part["Body"].read()) == ("bytes 2-4/10", b"234")
    with pytest.raises(ClientError) as caught:
        through.get_object(Bucket=bucket, Key="k", IfNoneMatch=tag)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 304
    gone = through.delete_object(Bucket=bucket, Key="k")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    with pytest.raises(ClientError) as caught:
        through.head_object(Bucket=bucket, Key="k")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


def test_an_empty_object_goes_through(through, direct, bucket):
    through.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert direct.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""
    assert through.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""


def test_compressed_bytes_are_left_compressed(through, direct, bucket):
    packed = gzip.compress(b"hello" * 100)
    through.put_object(Bucket=bucket, Key="k", Body=packed, ContentEncoding="gzip")
    for client in (direct, through):
        found = client.get_object(Bucket=bucket, Key="k")
        assert (found["ContentEncoding"], found["Body"].read()) == ("gzip", packed)


class Recorder(http.server.BaseHTTPRequestHandler):
    """Keeps what arrived, as it was on the wire."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.server.seen.append((self.path, self.headers, b""))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def recorder():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def connected(proxy):
    address = urllib.parse.urlsplit(proxy.url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port)) as link:
        yield link


def test_a_chunked_upload_with_trailers_arrives_byte_for_byte(recorder):
    """What S3 clients send when the checksum comes last."""
    body = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    headers = {
        "Transfer-Encoding": "chunked",
        "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": "x-amz-checksum-crc32",
        "X-Amz-Decoded-Content-Length": "5",
    }
    with (
        running_proxy(f"http://127.0.0.1:{recorder.server_port}") as proxy,
        connected(proxy) as link,
    ):
        link.request("PUT", "/b/k", iter([body[:7], body[7:]]), headers, encode_chunked=True)
        assert link.getresponse().read() == b""
    [(_, seen, arrived)] = recorder.seen
    assert arrived == body
    for name in ("Content-Encoding", "X-Amz-Trailer", "X-Amz-Decoded-Content-Length"):
        assert seen[name] == headers[name]


def test_path_and_headers_are_not_rewritten_and_none_is_made_up(recorder):
    path = "/b/a%20b//%2e./c%2Fd+e?list-type=2&prefix=x%2Fy&empty="
    upstream = f"http://127.0.0.1:{recorder.server_port}"
    with running_proxy(upstream) as proxy, connected(proxy) as link:
        link.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        link.putheader("Host", "bucket.example.com")
        link.putheader("X-Twice", "1")
        link.putheader("X-Twice", "2")
        link.endheaders()
        assert link.getresponse().read() == b"ok"
    [(seen, headers, _)] = recorder.seen
    assert seen == path
    assert headers["Host"] == "bucket.example.com"
    assert headers.get_all("X-Twice") == ["1", "2"]
    assert {name.lower() for name in headers} == {"host", "x-twice", "connection"}


# --- the actions -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429, 500, 409, 412])
def test_a_status_is_answered_and_the_server_never_asked(proxied, through, direct, bucket, status):
    body = "<Error><Code>Chosen</Code><Message>m</Message></Error>"
    proxied.add("status", "PUT", status=status, headers={"Retry-After": "7"}, body=body)
    with pytest.raises(ClientError) as caught:
        through.put_object(Bucket=bucket, Key="k", Body=b"x")
    reply = caught.value.response
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == status
    assert reply["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"
    assert reply["Error"]["Code"] == "Chosen"
    assert keys(direct, bucket) == []
    through.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert keys(direct, bucket) == ["k"]


@pytest.mark.parametrize(("action", "left"), [("drop", []), ("drop_after", ["k"])])
def test_a_cut_before_leaves_nothing_and_a_cut_after_the_effect(
    proxied, through, direct, bucket, action, left
):
    proxied.add(action, "PUT")
    with pytest.raises(ConnectionClosedError):
        through.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert keys(direct, bucket) == left


@pytest.mark.parametrize("size", [2, 1000, 16 << 20])
def test_a_truncated_body_is_half_of_what_its_length_promises(proxied, through, bucket, size):
    through.put_object(Bucket=bucket, Key="k", Body=b"x" * size)
    address = through.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    proxied.add("truncate", "GET")
    with connected(proxied) as link:
        link.request("GET", address.removeprefix(proxied.url))
        reply = link.getresponse()
        assert int(reply.headers["Content-Length"]) == size
        with pytest.raises(http.client.IncompleteRead) as caught:
            reply.read()
    assert len(caught.value.partial) == size // 2


def test_the_official_client_notices_a_truncated_body(proxied, through, bucket):
    through.put_object(Bucket=bucket, Key="k", Body=b"x" * 1000)
    proxied.add("truncate", "GET")
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        through.get_object(Bucket=bucket, Key="k")["Body"].read()


def test_a_delayed_request_takes_effect_although_its_client_gave_up(
    ministack, proxied, direct, bucket
):
    proxied.add("delay", "PUT", delay_s=1.0)
    hasty = client_of(ministack, proxied.url, read_timeout=0.2)
    with contextlib.closing(hasty), pytest.raises(ReadTimeoutError):
        hasty.put_object(Bucket=bucket, Key="k", Body=b"late")
    for _ in range(600):
        if keys(direct, bucket):
            break
        time.sleep(0.05)
    assert direct.get_object(Bucket=bucket, Key="k")["Body"].read() == b"late"


def test_a_server_that_is_gone_is_a_cut_connection_and_no_answer(ministack):
    with (
        running_proxy(f"http://127.0.0.1:{free_port()}") as proxy,
        contextlib.closing(client_of(ministack, proxy.url)) as client,
        pytest.raises(ConnectionClosedError),
    ):
        client.list_buckets()


# --- which requests --------------------------------------------------------------------------


def statuses(client, bucket, names):
    """What each put of some keys was answered."""
    found = []
    for name in names:
        try:
            reply = client.put_object(Bucket=bucket, Key=name, Body=b"x")
        except ClientError as error:
            reply = error.response
        found.append(reply["ResponseMetadata"]["HTTPStatusCode"])
    return found


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        ({}, [503, 200, 200, 200, 200, 200]),
        ({"times": 2}, [503, 503, 200, 200, 200, 200]),
        ({"times": 0}, [503] * 6),
        ({"nth": 3}, [200, 200, 503, 200, 200, 200]),
        ({"every": 2, "times": 0}, [200, 503, 200, 503, 200, 503]),
        ({"every": 2, "times": 2}, [200, 503, 200, 503, 200, 200]),
        ({"match": "PUT /[^/]+/a b$"}, [200, 503, 200, 200, 200, 200]),
        ({"match": "GET", "times": 0}, [200] * 6),
    ],
    ids=str,
)
def test_a_rule_takes_the_requests_it_names(proxied, through, bucket, rule, answers):
    proxied.add("status", **rule)
    assert statuses(through, bucket, ["a", "a b", "c", "d", "e%", "f"]) == answers


def test_the_nth_mutation_is_counted_past_the_reads(proxied, through, bucket):
    proxied.add("status", "^(PUT|POST|DELETE)", nth=2)
    for name, answer in [("a", 200), ("b", 503), ("c", 200)]:
        assert statuses(through, bucket, [name]) == [answer]
        keys(through, bucket)


def test_the_first_rule_wins_and_the_others_keep_their_turn(proxied, through, bucket):
    proxied.add("status", status=503)
    proxied.add("status", status=429)
    assert statuses(through, bucket, ["a", "b", "c"]) == [503, 429, 200]


def test_the_log_tells_every_request_decoded_and_which_change_something(proxied, through, bucket):
    through.put_object(Bucket=bucket, Key="a b", Body=b"x")
    through.get_object(Bucket=bucket, Key="a b")["Body"].read()
    proxied.add("drop", "DELETE")
    with pytest.raises(ConnectionClosedError):
        through.delete_object(Bucket=bucket, Key="a b")
    path = f"/{bucket}/a b"
    told = [f"PUT {path}", f"GET {path}", f"DELETE {path}"]
    assert proxied.requests == told
    assert proxied.mutations == [told[0], told[2]]


def test_clearing_forgets_rules_and_log(proxied, through, bucket):
    proxied.add("drop", times=0)
    with pytest.raises(ConnectionClosedError):
        keys(through, bucket)
    proxied.clear()
    assert proxied.requests == []
    assert keys(through, bucket) == []


def test_an_unknown_action_is_refused(proxied):
    with pytest.raises(ValueError, match="unknown action 'explode'"):
        proxied.add("explode")


def test_requests_of_many_threads_are_counted_exactly(proxied, through, direct, bucket):
    proxied.add("status", "PUT", every=10, times=0)
    with ThreadPoolExecutor(8) as pool:
        batches = [[f"{thread}-{n}" for n in range(25)] for thread in range(8)]
        found = list(pool.map(lambda names: statuses(through, bucket, names), batches))
    assert len(proxied.requests) == 200
    assert [status for batch in found for status in batch].count(503) == 20
    assert len(keys(direct, bucket)) == 180


def test_leaving_the_block_ends_the_proxy_with_a_request_in_flight(ministack):
    with running_proxy(ministack.endpoint) as proxy:
        port = int(proxy.url.rpartition(":")[2])
        [thread] = [found for found in threading.enumerate() if found.name == "fault proxy"]
        proxy.add("delay", delay_s=3600.0)
        hasty = client_of(ministack, proxy.url, read_timeout=0.2)
        with contextlib.closing(hasty), pytest.raises(ReadTimeoutError):
            hasty.list_buckets()
    assert not thread.is_alive()
    assert not listens(port)
