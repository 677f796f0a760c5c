"""Every setting of one bucket, resolved once: what gcsfs and TensorStore are both told.

The names are gcsfs's. TensorStore takes its endpoint and its credentials from the
environment alone, and looks for credentials once per process; `agree` sets what is not set,
and refuses what would make the arrays go elsewhere than the decisions about them.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_storage import errors
from holdfast_storage.settings import describe_settings

PUBLIC = "https://storage.googleapis.com"
_ENDPOINT_VARIABLE = "TENSORSTORE_GCS_HTTP_URL"
_FILE_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_TOKEN_VARIABLE = "GOOGLE_AUTH_TOKEN_FOR_TESTING"
_NAMES = frozenset(
    ("endpoint_url", "hns", "max_attempts", "project", "requester_pays", "timeout_s", "token")
)
# gcsfs knows them and they mean nothing here: how it caches, buffers, checks and lists.
_WITHOUT_MEANING = frozenset(
    (
        "access", "asynchronous", "block_size", "cache_timeout", "check_connection",
        "consistency", "default_location", "listings_expiry_time", "loop", "max_paths",
        "secure_serialize", "skip_instance_cache", "use_listings_cache", "version_aware",
    )
)  # fmt: skip
_TOKENS = ("anon", "google_default", "cloud")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._\-]{1,220}[a-z0-9]")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GcsSettings:
    """How one bucket is reached.

    Attributes:
        bucket: Its name.
        endpoint: URL of the service.
        token: `anon`, `google_default`, `cloud`, or the path of a credentials file; None
            means Google's own search.
        project: Of the credentials; None means theirs.
        user_project: The project that pays, or None.
        hierarchical: Whether the bucket has folders; None means that it is asked.
        timeout_s: For one operation with its repetitions, in seconds.
        max_attempts: Of one operation.
    """

    bucket: str
    endpoint: str = PUBLIC
    token: str | None = None
    project: str | None = None
    user_project: str | None = None
    hierarchical: bool | None = None
    timeout_s: float = 300.0
    max_attempts: int = 10

    @property
    def emulated(self) -> bool:
        """Whether this is not Google's own service."""
        return self.endpoint != PUBLIC

    def describe(self) -> str:
        """The settings for a message; they hold no secret but the path of one."""
        return describe_settings(
            {
                "bucket": self.bucket,
                "endpoint": self.endpoint,
                "signed": {"anon": "no", None: "as Google's libraries find"}.get(
                    self.token, f"with {self.token}"
                ),
                "project": self.project or "not set",
            }
        )


def resolve(
    bucket: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> GcsSettings:
    """Resolves the settings of a bucket; no I/O.

    Raises:
        InvalidURLError: A setting is unknown or cannot be honoured by both planes.
    """
    variables = os.environ if env is None else env
    if not _BUCKET.fullmatch(bucket):
        raise errors.InvalidURLError(
            f"{bucket!r} is no name of a bucket: a-z, 0-9, '-', '_' and '.', at least three"
        )
    unknown = sorted(options.keys() - _NAMES - _WITHOUT_MEANING)
    if unknown:
        raise errors.InvalidURLError(
            f"gs://{bucket}: unknown settings {unknown}; known are {sorted(_NAMES)}"
        )
    endpoint = _endpoint(options, variables)
    token = options.get("token") or ("anon" if endpoint != PUBLIC else None)
    if token is not None and not (
        isinstance(token, str) and (token in _TOKENS or os.path.isfile(token))
    ):
        raise errors.InvalidURLError(
            f"gs://{bucket}: 'token' is one of {', '.join(_TOKENS)} or the path of a credentials "
            "file, which both planes can read; an object of credentials or a bare token "
            "reaches only one of them"
        )
    payer = options.get("requester_pays")
    project = options.get("project") or variables.get("GOOGLE_CLOUD_PROJECT")
    if payer is True and not project:
        raise errors.InvalidURLError(f"gs://{bucket}: requester_pays needs the paying project")
    return GcsSettings(
        bucket=bucket,
        endpoint=endpoint,
        token=token,
        project=project,
        user_project=(project if payer is True else payer) or None,
        hierarchical=options.get("hns"),
        timeout_s=float(options.get("timeout_s", 300.0)),
        max_attempts=int(options.get("max_attempts", 10)),
    )


def _endpoint(options: Mapping[str, Any], env: Mapping[str, str]) -> str:
    given = options.get("endpoint_url") or env.get("STORAGE_EMULATOR_HOST") or ""
    if given in ("", "default"):
        return PUBLIC
    text = str(given).rstrip("/")
    text = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", text):
        raise errors.InvalidURLError(
            "the endpoint of GCS must be http://host:port or https://host, without credentials"
        )
    return text


_told: dict[str, str] = {}
_lock = threading.Lock()


def agree(settings: GcsSettings) -> None:
    """Makes TensorStore go where these settings go, for the rest of the process.

    Raises:
        InvalidURLError: It was told something else before, by a backend or by the user.
    """
    wanted: dict[str, str] = {}
    if settings.emulated:
        wanted[_ENDPOINT_VARIABLE] = settings.endpoint
        if settings.token == "anon" and not os.environ.get(_FILE_VARIABLE):
            # Without it TensorStore looks for credentials, and for a machine's, in vain.
            wanted[_TOKEN_VARIABLE] = os.environ.get(_TOKEN_VARIABLE, "anonymous")
    if settings.token and settings.token not in _TOKENS:
        wanted[_FILE_VARIABLE] = settings.token
    with _lock:
        if not settings.emulated and _ENDPOINT_VARIABLE in os.environ:
            _refuse(settings, _ENDPOINT_VARIABLE, PUBLIC)
        for name, value in wanted.items():
            if os.environ.get(name, value) != value:
                _refuse(settings, name, value)
        os.environ.update(wanted)
        _told.update(wanted)


def _refuse(settings: GcsSettings, name: str, value: str) -> None:
    raise errors.InvalidURLError(
        f"gs://{settings.bucket}: TensorStore, which moves the arrays, takes {name} from the "
        f"environment, once for a process; it is {os.environ[name]!r} and this bucket needs "
        f"{value!r}. Use one endpoint and one set of credentials per process"
    )


def forget() -> None:
    """Undoes what `agree` set; for tests, which meet many servers in one process."""
    with _lock:
        for name, value in _told.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        _told.clear()
