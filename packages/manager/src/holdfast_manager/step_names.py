"""How the folder of a step is called, and which folders are steps.

A format only says how names and steps belong together. Whether a checkpoint is committed in
a folder is asked of the storage: a folder with the right name is not a step by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from holdfast_checkpointer.engine.names import check_final
from holdfast_manager.policies.checks import check_integer
from holdfast_storage import InvalidKeyError, keys

if TYPE_CHECKING:
    from holdfast_manager.steps import CheckpointMetadata


@runtime_checkable
class NameFormat(Protocol):
    """Names the folders of steps, and recognises them."""

    def build_name(self, step: int) -> str:
        """The folder of a step: one path segment."""
        ...

    def parse_name(self, name: str) -> int | None:
        """The step that a folder's name stands for, or None if it is no step's."""
        ...


class _Finding:
    """What both formats offer besides names: the committed steps of a folder."""

    def find_all(self, base_path: str | PathLike[str]) -> Iterator[CheckpointMetadata]:
        """The committed steps below `base_path` whose folders have this format, in order."""
        from holdfast_checkpointer.options import current
        from holdfast_manager.run_directory import RunDirectory
        from holdfast_storage.loop import get_loop

        assert isinstance(self, NameFormat)
        run = RunDirectory(current().open_backend(base_path), self)
        yield from get_loop().run(run.list_steps())

    def find_step(self, base_path: str | PathLike[str], step: int) -> CheckpointMetadata:
        """One committed step below `base_path`.

        Raises:
            ValueError: It is not committed there under a name of this format.
        """
        found = {entry.step: entry for entry in self.find_all(base_path)}
        if step not in found:
            shown = ", ".join(map(str, list(found)[-10:])) or "none"
            raise ValueError(f"no step {step} in {base_path} as {self!r} names it; there: {shown}")
        return found[step]


@dataclass(frozen=True)
class StandardNameFormat(_Finding):
    """`[prefix_]step`, the step padded with zeros to a length; see `standard_name_format`."""

    step_prefix: str | None = None
    step_format_fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_integer(
            "step_format_fixed_length", self.step_format_fixed_length, at_least=1, or_none=True
        )
        if self.step_prefix is None:
            return
        accepted = "step_prefix is the beginning of a folder's name, or None"
        if not isinstance(self.step_prefix, str):
            raise TypeError(f"{accepted}; got {self.step_prefix!r}")
        if not self.step_prefix or self.step_prefix[0] in "._":
            raise ValueError(
                f"{accepted}; it is not empty and does not start with '.' or '_', "
                f"got {self.step_prefix!r}"
            )
        check_folder(self.build_name(0))

    def build_name(self, step: int) -> str:
        """The folder of a step.

        Examples:
            >>> standard_name_format(step_prefix="step", step_format_fixed_length=6).build_name(23)
            'step_000023'
        """
        digits = f"{step:0{self.step_format_fixed_length or 1}d}"
        return digits if self.step_prefix is None else f"{self.step_prefix}_{digits}"

    def parse_name(self, name: str) -> int | None:
        """The step of a folder: only of one that `build_name` would have made.

        Examples:
            >>> plain = standard_name_format()
            >>> plain.parse_name("12"), plain.parse_name("007"), plain.parse_name("metrics")
            (12, None, None)
        """
        digits = re.search(r"[0-9]{1,255}\Z", name)
        if digits is None or self.build_name(int(digits[0])) != name:
            return None
        return int(digits[0])


@dataclass(frozen=True)
class CompositeNameFormat(_Finding):
    """Writes one format and reads several; see `composite_name_format`."""

    write_name_format: NameFormat
    read_name_formats: Sequence[NameFormat]

    def __post_init__(self) -> None:
        reads = tuple(self.read_name_formats)
        for member in (self.write_name_format, *reads):
            check_name_format(member)
        object.__setattr__(self, "read_name_formats", reads)

    def build_name(self, step: int) -> str:
        """The folder of a step that is written now."""
        return self.write_name_format.build_name(step)

    def parse_name(self, name: str) -> int | None:
        """The step of a folder, by the first format that knows it."""
        for member in (self.write_name_format, *self.read_name_formats):
            step = step_in(member, name)
            if step is not None:
                return step
        return None


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,
) -> StandardNameFormat:
    """Folders called `23`, `0023`, `step_23` or `step_0023`.

    Args:
        step_prefix: Comes before the step, with an underscore between.
        step_format_fixed_length: Steps are padded with zeros to this length; longer ones
            are written in full.
        single_host_load_and_broadcast: Only False: processes list for themselves.

    Raises:
        ValueError: A folder cannot be called that.
        NotImplementedError: `single_host_load_and_broadcast` is true.
    """
    if single_host_load_and_broadcast:
        raise NotImplementedError(
            "single_host_load_and_broadcast=True is not offered: opening a run is one listing, "
            "and each process makes it for itself"
        )
    return StandardNameFormat(step_prefix, step_format_fixed_length)


def composite_name_format(
    write_name_format: NameFormat, read_name_formats: Sequence[NameFormat]
) -> CompositeNameFormat:
    """Goes on with a run under new names: writes one format, reads several.

    A step that is listed is loaded, described, replaced and removed under the name by which
    it was found. If several folders stand for one step, the one in the written format is it, or
    another one if that is damaged; removing the step removes all of them.

    Args:
        write_name_format: For steps saved from now on; also read.
        read_name_formats: Further formats of folders that are steps.

    Examples:
        >>> padded = standard_name_format(step_format_fixed_length=8)
        >>> both = composite_name_format(padded, [standard_name_format()])
        >>> both.build_name(7), both.parse_name("7"), both.parse_name("00000007")
        ('00000007', 7, 7)
    """
    return CompositeNameFormat(write_name_format, read_name_formats)


def check_name_format(value: Any) -> NameFormat:
    """Returns `value` if it is a name format.

    Raises:
        TypeError: It is not; the message says what one has.
    """
    if isinstance(value, type) or not isinstance(value, NameFormat):
        raise TypeError(
            f"a step name format has build_name(step) -> str and parse_name(name) -> int | None, "
            f"got {value!r}; see holdfast.path.step.standard_name_format"
        )
    return value


def check_folder(name: Any) -> str:
    """Returns `name` if a step's folder can be called that.

    Raises:
        InvalidKeyError: It is a `ValueError` that says what can be used.
    """
    accepted = "one segment of a path, not 'metadata', not starting with '.' or '_'"
    try:
        if not isinstance(name, str) or "/" in name or "\\" in name:
            raise InvalidKeyError("it is no segment of a path")
        if name[:1] == "_" or name == "metadata":
            raise InvalidKeyError("such folders are holdfast's own, beside the steps")
        return check_final(keys.check_key(name))
    except InvalidKeyError as error:
        raise InvalidKeyError(
            f"{name!r} cannot be the folder of a step, which is {accepted}: {error}"
        ) from error


def step_in(format_: NameFormat, name: str) -> int | None:
    """The step of a folder by any format; what a format cannot parse is no step."""
    try:
        step = format_.parse_name(name)
    except ValueError:
        return None
    return step if isinstance(step, int) and step >= 0 else None
