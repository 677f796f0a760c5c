"""Storage settings of a job, from code, environment and fsspec's configuration."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from holdfast_storage import errors

OPTIONS_VARIABLE = "HOLDFAST_STORAGE_OPTIONS"
_SECRET = re.compile(r"secret|token|password|credential|key|signature", re.IGNORECASE)


def resolve_settings(
    scheme: str,
    options: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The settings of one scheme: `options`, over the environment, over fsspec's.

    Args:
        scheme: The URL scheme.
        options: Given in code; they win.
        env: The environment; by default the process's, read now.

    Raises:
        InvalidURLError: `HOLDFAST_STORAGE_OPTIONS` is not a JSON object of objects.

    Example:
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
    """The settings for a message, secrets removed.

    Example:
        >>> describe_settings({"region": "eu", "secret": "x"})
        'region=eu, secret=***'
    """
    shown = (
        f"{name}={'***' if _SECRET.search(name) else value}"
        for name, value in sorted(settings.items())
    )
    return ", ".join(shown) or "none"


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
    """Fsspec's configuration, if the job uses fsspec at all (importing it costs time)."""
    config = sys.modules.get("fsspec.config")
    conf = getattr(config, "conf", {})
    return conf.get(scheme, {}) if isinstance(conf, Mapping) else {}
