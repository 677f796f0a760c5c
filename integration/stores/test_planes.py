"""s3fs or gcsfs on one side, TensorStore on the other: the same bytes, however configured.

Each way of configuring is a process of its own, because both clients look at the
environment once.
"""

import json
import os
import subprocess
import sys

import pytest

from holdfast_storage.settings import OPTIONS_VARIABLE

SCRIPT = """
import json, sys
import tensorstore as ts
from holdfast_storage import get_loop, open_backend

url, options = sys.argv[1], json.loads(sys.argv[2])

async def check():
    backend = open_backend(url, options)
    await backend.put("planes/control", b"by fsspec")
    target = backend.kv_target("planes")
    store = await ts.KvStore.open(dict(target.spec), context=ts.Context(dict(target.context)))
    await store.write("arrays", b"by TensorStore")
    assert await backend.get("planes/arrays") == b"by TensorStore"
    assert bytes((await store.read("control")).value) == b"by fsspec"
    assert {info.key async for info in backend.walk("planes")} == {
        "planes/arrays", "planes/control"
    }
    await backend.aclose()

get_loop().run(check())
print("agree")
"""


def run(url, options, env):
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "GOOGLE_", "STORAGE_", "TENSORSTORE_"))
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, url, json.dumps(options)],
        env=clean | {"AWS_EC2_METADATA_DISABLED": "true"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def files(tmp_path, server, profile="default"):
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    keys = f"aws_access_key_id={server.key}\naws_secret_access_key={server.secret}\n"
    credentials.write_text(f"[{profile}]\n{keys}")
    section = "default" if profile == "default" else f"profile {profile}"
    config.write_text(f"[{section}]\nendpoint_url={server.endpoint}\nregion=eu-central-1\n")
    return {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_CONFIG_FILE": str(config)}


S3_WAYS = {
    "in code": lambda s, _: (s.options, {}),
    "with a session token": lambda s, _: (s.options | {"token": "session"}, {}),
    "client_kwargs": lambda s, _: (
        {
            "key": s.key,
            "secret": s.secret,
            "client_kwargs": {"endpoint_url": s.endpoint, "region_name": "eu-west-3"},
        },
        {},
    ),
    "environment": lambda s, _: ({}, s.variables),
    "environment of S3 alone": lambda s, _: (
        {},
        s.variables | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": s.endpoint},
    ),
    "region by environment": lambda s, _: ({}, s.variables | {"AWS_REGION": "ap-south-1"}),
    "HOLDFAST_STORAGE_OPTIONS": lambda s, _: (
        {},
        {OPTIONS_VARIABLE: json.dumps({"s3": s.options})},
    ),
    "fsspec's variables": lambda s, _: (
        {},
        {
            "FSSPEC_S3_KEY": s.key,
            "FSSPEC_S3_SECRET": s.secret,
            "FSSPEC_S3_ENDPOINT_URL": s.endpoint,
        },
    ),
    "default profile": lambda s, tmp: ({}, files(tmp, s)),
    "AWS_PROFILE": lambda s, tmp: ({}, files(tmp, s, "team") | {"AWS_PROFILE": "team"}),
    "profile in code": lambda s, tmp: ({"profile": "team"}, files(tmp, s, "team")),
    "anonymous": lambda s, _: ({"anon": True, "endpoint_url": s.endpoint}, {}),
    "path style": lambda s, _: (s.options | {"addressing_style": "path"}, {}),
}


@pytest.mark.parametrize("way", S3_WAYS)
def test_both_planes_of_s3_agree(way, ministack, bucket_name, tmp_path):
    ministack.make_bucket(bucket_name)
    options, env = S3_WAYS[way](ministack, tmp_path)
    told = run(f"s3://{bucket_name}/run", options, env)
    assert told.stdout == "agree\n", told.stderr
    assert ministack.secret not in told.stderr


GCS_WAYS = {
    "in code": lambda url: ({"endpoint_url": url}, {}),
    "STORAGE_EMULATOR_HOST": lambda url: ({}, {"STORAGE_EMULATOR_HOST": url}),
    "a host without a scheme": lambda url: ({}, {"STORAGE_EMULATOR_HOST": url.split("//")[1]}),
    "HOLDFAST_STORAGE_OPTIONS": lambda url: (
        {},
        {OPTIONS_VARIABLE: json.dumps({"gs": {"endpoint_url": url, "token": "anon"}})},
    ),
    "fsspec's variables": lambda url: ({}, {"FSSPEC_GS_ENDPOINT_URL": url}),
}


@pytest.mark.parametrize("way", GCS_WAYS)
def test_both_planes_of_gcs_agree(way, gcs, gcs_bucket):
    options, env = GCS_WAYS[way](gcs.url)
    told = run(f"gs://{gcs_bucket}/run", options, env)
    assert told.stdout == "agree\n", told.stderr


@pytest.mark.parametrize("name", ["TENSORSTORE_GCS_HTTP_URL", "GOOGLE_AUTH_TOKEN_FOR_TESTING"])
def test_what_only_one_plane_would_follow_is_refused_or_kept(name, gcs, bucket_name):
    gcs.make_bucket(bucket_name)
    told = run(f"gs://{bucket_name}/run", {"endpoint_url": gcs.url}, {name: "http://127.0.0.1:9"})
    if name == "TENSORSTORE_GCS_HTTP_URL":
        assert "TensorStore, which moves the arrays, takes" in told.stderr
        assert "InvalidURLError" in told.stderr
    else:
        assert told.stdout == "agree\n", told.stderr
