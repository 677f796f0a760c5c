"""Which names an item may have."""

from __future__ import annotations

from holdfast_storage import errors

STATE = "state"
METRICS = "metrics"
AUTO = "AUTO"
ORBAX_MARKER = "orbax.checkpoint"
ORBAX_COMMIT = "commit_success.txt"
ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
_RESERVED = {METRICS, AUTO, ORBAX_MARKER, ORBAX_COMMIT}
_ACCEPTED = (
    "a name is one folder: letters, digits and the like, no '/', not starting with '.' or '_'"
)


def check_item_name(name: object, *, metrics: bool = False) -> str:
    """Returns `name` if an item can be called that.

    Args:
        name: What is asked for.
        metrics: Whether it may be that of metrics, as in Orbax's v0.

    Raises:
        InvalidKeyError: A `ValueError` that says which names can be used.
    """
    found = check_stored_name(name, metrics=metrics)
    if found[0] in "._" or ORBAX_TEMPORARY in found:
        raise errors.InvalidKeyError(f"{name!r} cannot name an item; {_ACCEPTED}")
    return found


def check_stored_name(name: object, *, metrics: bool = False) -> str:
    """Returns `name` if an item that Orbax saved can be called that; it takes more names.

    Args:
        name: What is asked for.
        metrics: Whether it may be that of metrics, as in Orbax's v0.

    Raises:
        InvalidKeyError: A `ValueError` that says which names can be used.
    """
    if not isinstance(name, str):
        raise errors.InvalidKeyError(f"an item's name is text, got {name!r}; {_ACCEPTED}")
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise errors.InvalidKeyError(f"{name!r} cannot name an item; {_ACCEPTED}")
    if name in _RESERVED and not (metrics and name == METRICS):
        raise errors.InvalidKeyError(
            f"{name!r} is reserved (as are {', '.join(sorted(_RESERVED - {name}))}); choose another"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise errors.InvalidKeyError(f"{name!r} is not Unicode; {_ACCEPTED}") from None
    return name


def check_loaded_name(name: object) -> None:
    """Refuses what can name no item to load; "AUTO" and None do.

    Raises:
        InvalidKeyError: A `ValueError` that says which names can be used.
    """
    if name is not None and name != AUTO:
        check_stored_name(name)


def check_final(final: str) -> str:
    """Returns `final` if a checkpoint can be known by it.

    Raises:
        InvalidKeyError: Its last segment is hidden, or is one that Orbax takes for a
            temporary directory.
    """
    last = final.rpartition("/")[2]
    if last.startswith(".") or ORBAX_TEMPORARY in last:
        raise errors.InvalidKeyError(
            f"a checkpoint cannot be called {last!r}: hidden names and {ORBAX_TEMPORARY!r} mark "
            "unfinished work",
            key=final,
        )
    return final
