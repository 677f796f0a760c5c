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
_MACHINE_VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT")  # Google's, and TensorStore's
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
_WORDS = {"true": True, "1": True, "false": False, "0": False}
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
    project = options.get("project") or variables.get("GOOGLE_CLOUD_PROJECT")
    return GcsSettings(
        bucket=bucket,
        endpoint=endpoint,
        token=_token(options, endpoint, bucket),
        project=project,
        user_project=_payer(options, project, bucket),
        hierarchical=_switch(options, "hns", bucket),
        timeout_s=_positive(options, "timeout_s", 300.0, bucket),
        max_attempts=int(_positive(options, "max_attempts", 10, bucket)),
    )


def _token(options: Mapping[str, Any], endpoint: str, bucket: str) -> str | None:
    token = options.get("token") or ("anon" if endpoint != PUBLIC else None)
    if token is None or (isinstance(token, str) and (token in _TOKENS or os.path.isfile(token))):
        return token
    raise errors.InvalidURLError(
        f"gs://{bucket}: 'token' is one of {', '.join(_TOKENS)} or the path of a credentials "
        "file, which both planes can read; an object of credentials or a bare token "
        "reaches only one of them"
    )


def _payer(options: Mapping[str, Any], project: str | None, bucket: str) -> str | None:
    """The project that pays: the one named, or with a plain yes the job's own."""
    given = options.get("requester_pays")
    if str(given).lower() not in _WORDS:
        return str(given) if given else None
    if not _switch(options, "requester_pays", bucket):
        return None
    if not project:
        raise errors.InvalidURLError(f"gs://{bucket}: requester_pays needs the paying project")
    return project


def _switch(options: Mapping[str, Any], name: str, bucket: str) -> bool | None:
    """Yes, no, or not said; variables of the environment say it in words."""
    given = options.get(name)
    if given is None or given == "":
        return None
    if str(given).lower() not in _WORDS:
        raise errors.InvalidURLError(f"gs://{bucket}: {name!r} is true or false, not {given!r}")
    return _WORDS[str(given).lower()]


def _positive(options: Mapping[str, Any], name: str, otherwise: float, bucket: str) -> float:
    given = options.get(name, otherwise)
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise errors.InvalidURLError(
            f"gs://{bucket}: {name!r} is a number above zero, not {given!r}"
        )
    return found


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
    unwanted: dict[str, str] = {}
    if settings.emulated:
        wanted[_ENDPOINT_VARIABLE] = settings.endpoint
    else:
        unwanted[_ENDPOINT_VARIABLE] = PUBLIC
    if settings.emulated and settings.token == "anon":
        # Without it TensorStore looks for credentials, and for a machine's, in vain.
        wanted[_TOKEN_VARIABLE] = os.environ.get(_TOKEN_VARIABLE, "anonymous")
    else:
        unwanted[_TOKEN_VARIABLE] = ""
    if settings.token and settings.token not in _TOKENS:
        wanted[_FILE_VARIABLE] = settings.token
    if settings.token == "cloud":
        unwanted[_FILE_VARIABLE] = ""
    theirs, ours = _MACHINE_VARIABLES
    if os.environ.get(theirs):
        wanted[ours] = os.environ[theirs]
    with _lock:
        for name, value in {**wanted, **unwanted}.items():
            if os.environ.get(name, value) != value:
                _refuse(settings, name, value)
        os.environ.update(wanted)
        _told.update(wanted)


def _refuse(settings: GcsSettings, name: str, value: str) -> None:
    secret = name == _TOKEN_VARIABLE
    found = "set" if secret else repr(os.environ[name])
    needed = repr(value) if value and not secret else "it unset"
    raise errors.InvalidURLError(
        f"gs://{settings.bucket}: TensorStore, which moves the arrays, takes {name} from the "
        f"environment, for the whole process; it is {found} and this bucket needs {needed}. "
        "Use one endpoint and one set of credentials per process"
    )


def forget() -> None:
    """Undoes what `agree` set; for tests, which meet many servers in one process."""
    with _lock:
        for name, value in _told.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        _told.clear()
