"""Storage settings of a job, from code, environment and fsspec's configuration."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from holdfast_storage import errors
from holdfast_storage.urls import LOCAL_SCHEME

OPTIONS_VARIABLE = "HOLDFAST_STORAGE_OPTIONS"
_SECRET = re.compile(r"secret|token|password|credential|key|signature", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
# Served by holdfast itself, without fsspec, whose settings of that name mean other things.
_WITHOUT_FSSPEC = frozenset((LOCAL_SCHEME, "memory"))


def resolve_settings(
    scheme: str,
    options: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The settings of one scheme: `options`, over the environment, over fsspec's.

    A setting that stands in several places is taken whole from the first of them.

    Args:
        scheme: The URL scheme.
        options: Given in code; they win.
        env: The environment; by default the process's, read now.

    Raises:
        InvalidURLError: `HOLDFAST_STORAGE_OPTIONS` is not a JSON object of objects.

    Examples:
        >>> env = {"HOLDFAST_STORAGE_OPTIONS": '{"s3": {"region": "eu", "anon": true}}'}
        >>> resolve_settings("s3", {"anon": False}, env=env)
        {'region': 'eu', 'anon': False}
    """
    variables = os.environ if env is None else env
    found: dict[str, Any] = dict(_fsspec_settings(scheme))
    found.update(_from_environment(scheme, variables))
    found.update(options or {})
    return found


def describe_settings(settings: Mapping[str, Any]) -> str:
    """The settings for a message, secrets removed at any depth and from URLs.

    Examples:
        >>> describe_settings({"region": "eu", "secret": "x", "client": {"token": "y"}})
        "client={'token': '***'}, region=eu, secret=***"
    """
    shown = (f"{name}={value}" for name, value in sorted(_without_secrets(settings).items()))
    return ", ".join(shown) or "none"


def _without_secrets(value: Any) -> Any:
    match value:
        case Mapping():
            return {
                str(name): "***" if _SECRET.search(str(name)) else _without_secrets(inner)
                for name, inner in value.items()
            }
        case list() | tuple():
            return [_without_secrets(inner) for inner in value]
        case str():
            return _USER_INFO.sub("***@", value)
        case None | bool() | int() | float():
            return value
    return f"<{type(value).__name__}>"  # a session or a credentials object may print anything


def _from_environment(scheme: str, env: Mapping[str, str]) -> dict[str, Any]:
    text = env.get(OPTIONS_VARIABLE, "")
    if not text.strip():
        return {}
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise errors.InvalidURLError(f"{OPTIONS_VARIABLE} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict) or not all(isinstance(v, dict) for v in parsed.values()):
        raise errors.InvalidURLError(
            f"{OPTIONS_VARIABLE} must be a JSON object of objects by scheme, for example "
            '{"<scheme>": {"endpoint_url": "..."}}'
        )
    chosen: dict[str, Any] = parsed.get(scheme, {})
    return chosen


def _fsspec_settings(scheme: str) -> Mapping[str, Any]:
    """Fsspec's configuration (its files and `FSSPEC_*` variables), where it is installed."""
    if scheme in _WITHOUT_FSSPEC:
        return {}
    try:
        from fsspec.config import conf
    except ImportError:
        return {}
    found = conf.get(scheme, {})
    return found if isinstance(found, Mapping) else {}
