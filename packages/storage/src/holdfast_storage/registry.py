"""Which backend serves a URL: entry points, registrations, and one instance per place."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.settings import resolve_settings
from holdfast_storage.urls import Location, resolve_url

ENTRY_POINTS = "holdfast.storage_backends"
BackendFactory = Callable[[str, Mapping[str, Any]], StorageBackend]

# The one place that knows which distribution serves a scheme that is not installed: the
# answer to an unknown scheme is the command that installs it.
_DISTRIBUTIONS = {
    "file": "holdfast-local",
    "s3": "holdfast-s3",
    "gs": "holdfast-gcs",
    "gcs": "holdfast-gcs",
}

_lock = threading.RLock()
_registered: dict[str, BackendFactory] = {}
# By place and settings; then one for each environment that was met.
_open: dict[tuple[str, str], list[tuple[StorageBackend, dict[str, str]]]] = {}


def register(scheme: str, factory: BackendFactory) -> None:
    """Serves a scheme with `factory`, over any installed backend.

    Args:
        scheme: The URL scheme.
        factory: Called with the root's URL and the resolved settings.
    """
    with _lock:
        _registered[scheme.lower()] = factory
        _forget(scheme.lower())


def unregister(scheme: str) -> None:
    """Undoes `register`; installed backends serve the scheme again."""
    with _lock:
        _registered.pop(scheme.lower(), None)
        _forget(scheme.lower())


def open_backend(
    url: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> StorageBackend:
    """The backend whose root is `url`. The same place and settings give the same object.

    Settings may come from the environment (`StorageBackend.environment`): who corrects a
    variable after a refusal gets a backend that follows it.

    Raises:
        UnknownSchemeError: No backend serves the scheme; says what to install.
        InvalidURLError: `url` or a setting cannot be understood, or two distributions
            claim the scheme.
    """
    return _open_at(resolve_url(url), options)


def locate(
    url: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[StorageBackend, str]:
    """The backend one level above a checkpoint, and the checkpoint's key in it.

    Raises:
        UnknownSchemeError: No backend serves the scheme; says what to install.
        InvalidURLError: `url` cannot be understood, or names a whole store.
    """
    above, key = resolve_url(url).split()
    return _open_at(above, options), key


def _open_at(place: Location, options: Mapping[str, Any] | None) -> StorageBackend:
    factory = _factory(place)
    settings = resolve_settings(place.scheme, options)
    try:
        cache_key = (place.url, json.dumps(settings, sort_keys=True))
    except TypeError:  # a credentials object, say: not comparable, so not shared
        return factory(place.url, settings)
    with _lock:
        for backend, told in _open.get(cache_key, ()):
            if told == _variables(backend):
                return backend
        made = factory(place.url, settings)
        _open.setdefault(cache_key, []).append((made, _variables(made)))
        return made


def _variables(backend: StorageBackend) -> dict[str, str]:
    """What the environment says about a backend's settings."""
    if not backend.environment:
        return {}
    return {name: told for name, told in os.environ.items() if name.startswith(backend.environment)}


def _factory(place: Location) -> BackendFactory:
    with _lock:
        factory = _registered.get(place.scheme)
    if factory is not None:
        return factory
    found = _installed(place.scheme, tuple(sys.path))
    if found is None:
        _installed.cache_clear()  # whoever installs one now need not start anew
        raise errors.UnknownSchemeError(_unknown(place))
    return found


@functools.cache
def _installed(scheme: str, where: tuple[str, ...]) -> BackendFactory | None:
    """What serves a scheme, by the distributions that are found at `where`.

    To look for them takes milliseconds, and every save and load asks.
    """
    claims = tuple(importlib.metadata.entry_points(group=ENTRY_POINTS, name=scheme))
    if len(claims) > 1:
        names = sorted(point.dist.name if point.dist else point.value for point in claims)
        raise errors.InvalidURLError(
            f"{scheme}:// is claimed by {' and '.join(names)}; uninstall one, or choose "
            "with holdfast_storage.register()"
        )
    if not claims:
        return None
    loaded: BackendFactory = claims[0].load()
    return loaded


def _unknown(place: Location) -> str:
    distribution = _DISTRIBUTIONS.get(place.scheme)
    known = sorted(
        {point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
        | _registered.keys()
    )
    advice = (
        f"install it with: pip install {distribution}"
        if distribution
        else "no known distribution serves it; holdfast_storage.register() can"
    )
    return f"no storage backend for {place.scheme}:// ({place.url}): {advice}. Installed: {known}"


def _forget(scheme: str) -> None:
    for key in [key for key in _open if key[0].startswith(f"{scheme}://")]:
        del _open[key]


def _forget_after_fork() -> None:
    """Sessions and thread pools do not survive a fork."""
    global _lock
    _lock = threading.RLock()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
