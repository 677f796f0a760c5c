"""Every setting of one bucket, resolved once: what s3fs and TensorStore are both told.

The names are s3fs's, so that settings which users already have (in code, in fsspec's
configuration) keep their meaning; the standard `AWS_*` variables and profiles fill the
gaps with the precedence of botocore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_storage import errors
from holdfast_storage.settings import describe_settings

ADDRESSING_STYLES = ("auto", "path", "virtual")
_NAMES = frozenset(
    (
        "addressing_style", "anon", "client_kwargs", "config_kwargs", "endpoint_url", "key",
        "max_attempts", "password", "profile", "region", "requester_pays", "secret",
        "timeout_s", "token", "unsafe_commit", "use_ssl", "username",
    )
)  # fmt: skip
# s3fs knows them and they mean nothing here: how it caches, buffers and lists.
_WITHOUT_MEANING = frozenset(
    (
        "asynchronous", "cache_regions", "default_block_size", "default_cache_type",
        "default_fill_cache", "fixed_upload_size", "listings_expiry_time", "local_expiry_check",
        "loop", "max_concurrency", "max_paths", "session", "skip_instance_cache",
        "use_listings_cache", "version_aware",
    )
)  # fmt: skip
_CLIENT_NAMES = frozenset(
    (
        "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url",
        "region_name", "use_ssl", "verify",
    )
)  # fmt: skip
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class S3Settings:
    """How one bucket is reached.

    Attributes:
        bucket: Its name.
        endpoint: URL of the store; None means AWS.
        region: None means that it is found out.
        addressing: `path`, `virtual`, or `auto`: virtual on AWS, path elsewhere.
        anonymous: Sign nothing.
        key: Access key given in code; None means botocore's own search.
        secret: Belongs to `key`.
        token: Session token that belongs to `key`.
        profile: Name of a profile; None means the default one.
        requester_pays: Agree to pay.
        ca_bundle: Certificates to trust beside the system's.
        unsafe_commit: Go on where the store ignores conditions.
        timeout_s: For one operation with its repetitions, in seconds.
        max_attempts: Of one operation.
        config: Further arguments of botocore's `Config`.
    """

    bucket: str
    endpoint: str | None = None
    region: str | None = None
    addressing: str = "auto"
    anonymous: bool = False
    key: str | None = None
    secret: str | None = None
    token: str | None = None
    profile: str | None = None
    requester_pays: bool = False
    ca_bundle: str | None = None
    unsafe_commit: bool = False
    timeout_s: float = 300.0
    max_attempts: int = 10
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path_style(self) -> bool:
        """Whether the bucket stands in the path instead of the host's name."""
        if self.addressing == "auto":
            return self.endpoint is not None or "." in self.bucket
        return self.addressing == "path"

    def describe(self) -> str:
        """The settings for a message; secrets removed."""
        shown: dict[str, Any] = {
            "bucket": self.bucket,
            "endpoint": self.endpoint or "AWS",
            "region": self.region or "not set",
            "addressing": "path" if self.path_style else "virtual",
            "signed": self._signed(),
        }
        return describe_settings(shown | ({"ca_bundle": self.ca_bundle} if self.ca_bundle else {}))

    def _signed(self) -> str:
        if self.anonymous:
            return "no"
        if self.key:
            return f"by {self.key[:4]}…" + (" with a session token" if self.token else "")
        return f"by profile {self.profile}" if self.profile else "as the SDK finds"

    def filesystem_arguments(self) -> dict[str, Any]:
        """What `s3fs.S3FileSystem` is told."""
        client: dict[str, Any] = {}
        if self.region:
            client["region_name"] = self.region
        if self.ca_bundle:
            client["verify"] = self.ca_bundle
        arguments: dict[str, Any] = {
            "anon": self.anonymous,
            "key": self.key,
            "secret": self.secret,
            "token": self.token,
            "endpoint_url": self.endpoint,
            "requester_pays": self.requester_pays,
            "client_kwargs": client,
            "config_kwargs": self._config(),
        }
        return arguments

    def _config(self) -> dict[str, Any]:
        chosen = dict(self.config)
        chosen.setdefault("connect_timeout", 10)
        chosen.setdefault("read_timeout", 60)
        chosen.setdefault("max_pool_connections", 64)
        # One try each: this backend repeats, because it knows what may be repeated.
        chosen["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        s3 = dict(chosen.get("s3") or {})
        s3["addressing_style"] = "path" if self.path_style else "virtual"
        chosen["s3"] = s3
        if self.endpoint is not None:
            # Newer checksum trailers are unknown to many stores other than AWS.
            chosen.setdefault("request_checksum_calculation", "when_required")
            chosen.setdefault("response_checksum_validation", "when_required")
        return chosen


def resolve(
    bucket: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> S3Settings:
    """Resolves the settings of a bucket; reads the environment and the AWS files, no more.

    Raises:
        InvalidURLError: A setting is unknown, of the wrong kind, or cannot be honoured by
            both planes.
    """
    variables = os.environ if env is None else env
    if not _BUCKET.fullmatch(bucket):
        raise errors.InvalidURLError(
            f"{bucket!r} is no name of an S3 bucket: 3 to 63 of a-z, 0-9, '-' and '.'"
        )
    _check_names(bucket, options)
    client = dict(options.get("client_kwargs") or {})
    config = dict(options.get("config_kwargs") or {})
    profile = options.get("profile")
    scoped = _profile_settings(profile, variables)
    endpoint = _endpoint(options, client, scoped, variables)
    region = (
        options.get("region")
        or client.get("region_name")
        or config.get("region_name")
        or variables.get("AWS_REGION")
        or variables.get("AWS_DEFAULT_REGION")
        or scoped.get("region")
        or ("us-east-1" if endpoint else None)
    )
    key = options.get("key") or options.get("username") or client.get("aws_access_key_id")
    secret = options.get("secret") or options.get("password") or client.get("aws_secret_access_key")
    if bool(key) != bool(secret):
        raise errors.InvalidURLError(
            f"s3://{bucket}: 'key' and 'secret' are given together; only one was"
        )
    return S3Settings(
        bucket=bucket,
        endpoint=endpoint or _public_endpoint(region, variables),
        region=region,
        addressing=_addressing(options, config, scoped),
        anonymous=bool(options.get("anon", False)),
        key=key,
        secret=secret,
        token=options.get("token") or client.get("aws_session_token"),
        profile=profile,
        requester_pays=bool(options.get("requester_pays", False)),
        ca_bundle=_ca_bundle(bucket, client, scoped, variables),
        unsafe_commit=bool(options.get("unsafe_commit", False)),
        timeout_s=float(options.get("timeout_s", 300.0)),
        max_attempts=int(options.get("max_attempts", 10)),
        config={name: value for name, value in config.items() if name != "region_name"},
    )


def _check_names(bucket: str, options: Mapping[str, Any]) -> None:
    unknown = sorted(options.keys() - _NAMES - _WITHOUT_MEANING)
    if "s3_additional_kwargs" in unknown:
        raise errors.InvalidURLError(
            f"s3://{bucket}: s3_additional_kwargs reach s3fs and not the arrays; set encryption "
            "and storage class as defaults of the bucket"
        )
    if unknown:
        raise errors.InvalidURLError(
            f"s3://{bucket}: unknown settings {unknown}; known are {sorted(_NAMES)}"
        )
    for name in ("client_kwargs", "config_kwargs"):
        if not isinstance(options.get(name) or {}, Mapping):
            raise errors.InvalidURLError(f"s3://{bucket}: {name} is an object of settings")
    odd = sorted((options.get("client_kwargs") or {}).keys() - _CLIENT_NAMES)
    if odd:
        raise errors.InvalidURLError(
            f"s3://{bucket}: client_kwargs {odd} reach s3fs and not the arrays; known are "
            f"{sorted(_CLIENT_NAMES)}"
        )


def _endpoint(
    options: Mapping[str, Any],
    client: Mapping[str, Any],
    scoped: Mapping[str, Any],
    env: Mapping[str, str],
) -> str | None:
    given = options.get("endpoint_url") or client.get("endpoint_url")
    ignored = env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() in _TRUE
    if not given and not ignored:
        given = (
            env.get("AWS_ENDPOINT_URL_S3")
            or env.get("AWS_ENDPOINT_URL")
            or scoped.get("s3_endpoint_url")
            or scoped.get("endpoint_url")
        )
    if not given:
        return None
    text = str(given).rstrip("/")
    if "://" not in text:
        secure = options.get("use_ssl", client.get("use_ssl", True))
        text = f"{'https' if secure else 'http'}://{text}"
    if not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", text):
        raise errors.InvalidURLError(
            "the endpoint of S3 must be http://host:port or https://host, without credentials"
        )
    return text


def _public_endpoint(region: str | None, env: Mapping[str, str]) -> str | None:
    """AWS's endpoint where TensorStore would not find it by itself."""
    if not region:
        return None
    stack = "dualstack." if env.get("AWS_USE_DUALSTACK_ENDPOINT", "").lower() in _TRUE else ""
    service = "s3-fips" if env.get("AWS_USE_FIPS_ENDPOINT", "").lower() in _TRUE else "s3"
    if region.startswith("cn-"):
        return f"https://{service}.{stack}{region}.amazonaws.com.cn"
    if stack or service != "s3":
        return f"https://{service}.{stack}{region}.amazonaws.com"
    return None


def _addressing(
    options: Mapping[str, Any], config: Mapping[str, Any], scoped: Mapping[str, Any]
) -> str:
    profiled = scoped.get("s3") or {}
    chosen = (
        options.get("addressing_style")
        or (config.get("s3") or {}).get("addressing_style")
        or (profiled.get("addressing_style") if isinstance(profiled, Mapping) else None)
        or "auto"
    )
    if chosen not in ADDRESSING_STYLES:
        raise errors.InvalidURLError(
            f"addressing_style is one of {', '.join(ADDRESSING_STYLES)}; got {chosen!r}"
        )
    return str(chosen)


def _ca_bundle(
    bucket: str,
    client: Mapping[str, Any],
    scoped: Mapping[str, Any],
    env: Mapping[str, str],
) -> str | None:
    verify = client.get("verify")
    if verify is False:
        raise errors.InvalidURLError(
            f"s3://{bucket}: TensorStore, which writes the arrays, always checks certificates; "
            "give client_kwargs={'verify': '/path/to/ca.pem'} instead of False"
        )
    if isinstance(verify, str):
        return verify
    return env.get("AWS_CA_BUNDLE") or scoped.get("ca_bundle")


def _profile_settings(profile: str | None, env: Mapping[str, str]) -> Mapping[str, Any]:
    """What the AWS configuration file says for the profile.

    Raises:
        InvalidURLError: The profile does not exist.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError

    session = botocore.session.Session(profile=profile)
    try:
        found = dict(session.get_scoped_config())
        services = session.full_config.get("services", {}).get(found.get("services"), {})
    except BotoCoreError as error:
        raise errors.InvalidURLError(f"the AWS configuration cannot be used: {error}") from error
    s3 = services.get("s3") or {}
    if isinstance(s3, Mapping) and s3.get("endpoint_url"):
        found["s3_endpoint_url"] = s3["endpoint_url"]
    return found
