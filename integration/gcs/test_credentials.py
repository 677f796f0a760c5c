"""Signed requests: a service account's file, and a token service that may refuse or be down."""

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from holdfast_storage import errors
from integration.servers.processes import free_port

JSON = [("Content-Type", "application/json")]
GRANTED = json.dumps({"access_token": "fresh", "expires_in": 3600, "token_type": "Bearer"})


@pytest.fixture(scope="module")
def private_key():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture
def service_account(tmp_path, private_key):
    """Writes a service account's file whose tokens come from the given address."""

    def write(token_uri):
        file = tmp_path / "account.json"
        account = {
            "type": "service_account", "project_id": "own", "private_key_id": "1",
            "private_key": private_key, "client_email": "job@own.iam", "token_uri": token_uri,
        }  # fmt: skip
        file.write_text(json.dumps(account))
        return str(file)

    return write


@pytest.mark.parametrize("way", ["file in code", "GOOGLE_APPLICATION_CREDENTIALS"])
async def test_requests_are_signed_with_a_service_account(
    way, gcs, flat, opened, answering, service_account, monkeypatch
):
    gcs.token = "fresh"
    file = service_account(answering(200, GRANTED.encode(), JSON))
    if way == "file in code":
        backend = opened(flat, token=file)
    else:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
        # A project that pays may be another than the credentials'.
        backend = opened(flat, token="google_default", project="payer", requester_pays=True)
    await backend.put("k", b"1")
    assert await backend.get("k") == b"1"


async def test_an_account_that_was_revoked_is_a_matter_of_permission(
    flat, opened, answering, service_account, private_key
):
    refusal = json.dumps({"error": "invalid_grant", "error_description": "revoked"}).encode()
    backend = opened(flat, token=service_account(answering(400, refusal, JSON)))
    with pytest.raises(errors.StoragePermissionError, match="revoked") as caught:
        await backend.get("k")
    assert private_key[100:140] not in str(caught.value)


async def test_a_token_service_that_is_down_may_come_back(flat, opened, service_account):
    nobody = f"http://127.0.0.1:{free_port()}"
    backend = opened(flat, token=service_account(nobody), max_attempts=2)
    with pytest.raises(errors.TransientStorageError, match="token service does not answer"):
        await backend.put("k", b"")


async def test_a_named_file_that_is_not_there_never_means_unsigned_requests(
    opened, monkeypatch, tmp_path
):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    with pytest.raises(errors.StoragePermissionError, match=r"gone\.json"):
        await opened("bucket", endpoint_url="default", max_attempts=1).get("k")
