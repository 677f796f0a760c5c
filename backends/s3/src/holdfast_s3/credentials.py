"""The credentials that s3fs finds, in the form that TensorStore takes.

TensorStore's S3 driver takes no keys in its spec: it reads them from the environment, from
a credentials file, or from the machine's metadata service. Keys that came from elsewhere
(code, single sign-on, an assumed role) are passed through a file that only this user can
read, in memory where the system offers it, removed when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

from holdfast_s3.settings import S3Settings
from holdfast_storage import errors

_IN_RAM = "/dev/shm"
# How botocore names what TensorStore can ask by itself, and thus renew by itself.
_RENEWED = {
    "env": "environment",
    "iam-role": "imds",
    "container-role": "ecs",
    "assume-role-with-web-identity": "default",
}


class DataCredentials:
    """What TensorStore is told about credentials, for one backend. Thread-safe."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._found: Any = None
        self._written: dict[tuple[str, str, str], dict[str, Any]] = {}

    def spec(self) -> dict[str, Any]:
        """The `aws_credentials` of a TensorStore spec, current as of now.

        Raises:
            StoragePermissionError: There are none to be found.
        """
        if self._settings.anonymous:
            return {"type": "anonymous"}
        with self._lock:
            keys, method = self._keys()
            if method in _RENEWED:
                return {"type": _RENEWED[method]}
            if keys not in self._written:
                self._written[keys] = _write(keys)
            return dict(self._written[keys])

    def _keys(self) -> tuple[tuple[str, str, str], str]:
        chosen = self._settings
        if chosen.key and chosen.secret:
            return (chosen.key, chosen.secret, chosen.token or ""), "given"
        if self._found is None:
            self._found = self._search()
        frozen = self._found.get_frozen_credentials()
        return (frozen.access_key, frozen.secret_key, frozen.token or ""), self._found.method

    def _search(self) -> Any:
        import botocore.session
        from botocore.exceptions import BotoCoreError

        try:
            found = botocore.session.Session(profile=self._settings.profile).get_credentials()
        except BotoCoreError as error:
            raise self._missing(str(error)) from error
        if found is None:
            raise self._missing("none were found")
        return found

    def _missing(self, why: str) -> errors.StoragePermissionError:
        return errors.StoragePermissionError(
            f"no AWS credentials ({why}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "name a profile, or read a public bucket with the setting anon=true; settings: "
            f"{self._settings.describe()}",
            root=f"s3://{self._settings.bucket}",
        )


_directory: str | None = None
_finalizer: Any = None


def _private_directory() -> str:
    global _directory, _finalizer
    if _directory is None or not os.path.isdir(_directory):
        base = _IN_RAM if os.access(_IN_RAM, os.W_OK) else None
        _directory = tempfile.mkdtemp(prefix="holdfast-s3-", dir=base)  # mode 0700
        _finalizer = weakref.finalize(DataCredentials, _remove, _directory, os.getpid())
    return _directory


def _remove(directory: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(directory, ignore_errors=True)


def _write(keys: tuple[str, str, str]) -> dict[str, Any]:
    """Writes a credentials file and says how TensorStore finds it."""
    key, secret, token = keys
    lines = ["[default]", f"aws_access_key_id={key}", f"aws_secret_access_key={secret}"]
    if token:
        lines.append(f"aws_session_token={token}")
    descriptor, path = tempfile.mkstemp(dir=_private_directory())  # mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join(lines) + "\n")
    config = Path(_private_directory()) / "config"
    with contextlib.suppress(FileExistsError):
        config.touch(mode=0o600, exist_ok=False)
    return {
        "type": "profile",
        "profile": "default",
        "credentials_file": path,
        "config_file": str(config),
    }
