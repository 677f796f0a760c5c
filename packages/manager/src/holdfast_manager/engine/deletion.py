"""What a user says about removing steps: how fast, and whether they can come back."""

from __future__ import annotations

import datetime
import reprlib
from dataclasses import dataclass, field

from holdfast_manager.step_names import NameFormat, step_in
from holdfast_storage import InvalidKeyError, keys
from holdfast_storage.commit.layout import parse_hidden, parse_partial

PATIENCE = datetime.timedelta(seconds=30)


def check_duration(value: object, what: str) -> datetime.timedelta:
    """Refuses what is no length of time.

    Raises:
        TypeError: It is no `datetime.timedelta`.
        ValueError: It is negative.
    """
    if not isinstance(value, datetime.timedelta):
        raise TypeError(f"{what} is a datetime.timedelta, got {reprlib.repr(value)}")
    if value < datetime.timedelta(0):
        raise ValueError(f"{what} must not be negative, got {value}")
    return value


@dataclass(frozen=True)
class Deletion:
    """How the data of removed steps is deleted: in the background, and never faster than this.

    No save, `wait` or `should_save` waits for it. What is left when a process ends, the next
    one that saves to the run finds and deletes.

    Attributes:
        at_once: Steps that are deleted at the same time.
        objects_per_second: How many objects are deleted in a second, all steps together; None
            is as fast as the store goes, which deletes many objects in one request.
        patience: How long `close` waits for what is queued.

    Raises:
        TypeError: A value is of another kind.
        ValueError: A number is not positive, or `patience` is negative.
    """

    at_once: int = 2
    objects_per_second: float | None = None
    patience: datetime.timedelta = field(default_factory=lambda: PATIENCE)

    def __post_init__(self) -> None:
        if isinstance(self.at_once, bool) or not isinstance(self.at_once, int):
            raise TypeError(f"at_once is an integer >= 1, got {self.at_once!r}")
        if self.at_once < 1:
            raise ValueError(f"at_once is an integer >= 1, got {self.at_once}")
        rate = self.objects_per_second
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
            raise TypeError(f"objects_per_second is a number > 0 or None, got {rate!r}")
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"objects_per_second is a number > 0 or None, got {rate}")
        check_duration(self.patience, "patience")


@dataclass(frozen=True)
class Trash:
    """Removed steps go to a folder of the run, from where they can be restored.

    Attributes:
        keep_for: How long they stay there, by the store's clock; None is until
            `empty_trash` is called.
        prefix: The folder, relative to the run and in it.

    Raises:
        TypeError: A value is of another kind.
        ValueError: `prefix` would lie outside of the run, or is a name of holdfast's own.
    """

    keep_for: datetime.timedelta | None = None
    prefix: str = ".trash"

    def __post_init__(self) -> None:
        if self.keep_for is not None:
            check_duration(self.keep_for, "keep_for")
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix is a folder in the run, as '.trash', got {self.prefix!r}")
        try:
            keys.check_key(self.prefix, root="the run")
        except InvalidKeyError as error:
            raise ValueError(
                f"the trash lies in the run: prefix is a path relative to it without '..', as "
                f"'.trash', got {self.prefix!r}"
            ) from error
        first = self.prefix.partition("/")[0]
        ours = first.startswith(("_", ".holdfast")) or first == "metadata"
        if ours or "://" in self.prefix or parse_hidden(first) or parse_partial(first):
            raise ValueError(
                f"prefix={self.prefix!r} cannot be the trash: {first!r} is a name that runs have "
                "another use for; take one as '.trash'"
            )

    def check_beside(self, names: NameFormat) -> None:
        """Refuses a folder that is called as a step is.

        Raises:
            ValueError: It is.
        """
        first = self.prefix.partition("/")[0]
        if step_in(names, first) is not None:
            raise ValueError(
                f"prefix={self.prefix!r} cannot be the trash: {first!r} is the name of a step"
            )
