"""What a `CheckpointManager` can be told; checked when it is made, before anything happens."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.checkpointer_options import instance_options
from holdfast_checkpointer.options.checks import refuse_unless
from holdfast_manager.engine.deletion import Deletion, Trash
from holdfast_manager.policies.checks import (
    check_duration,
    check_integer,
    check_policy,
    check_steps,
)
from holdfast_manager.policies.preservation_policies import PreservationPolicy
from holdfast_manager.policies.save_decision_policies import SaveDecisionPolicy
from holdfast_manager.step_names import NameFormat, check_name_format, standard_name_format


@dataclass(frozen=True)
class CheckpointManagerOptions:
    """Options of a `CheckpointManager`. Immutable; what has no effect here is refused in words.

    Attributes:
        save_interval_steps: Save steps that this divides; the first step of a run is saved in
            any case. None saves none for this reason.
        max_to_keep: Keep this many of the newest steps, or with `best_fn` of the best ones.
            None keeps all, and 0 means 0; the newest committed step stays all the same.
        keep_time_interval: Besides, keep the first step, then each that was committed so long
            after the last one kept.
        keep_period: Besides, keep steps that this divides.
        best_fn: From the metrics of a step to a number; says which steps are the best.
        best_mode: "max" if a larger number is better, "min" if a smaller one is.
        keep_checkpoints_without_metrics: Whether steps stay that `best_fn` cannot rank.
        step_prefix: See `holdfast.path.step.standard_name_format`.
        step_format_fixed_length: See `holdfast.path.step.standard_name_format`.
        step_name_format: How the folders of steps are called, instead of the two above.
        create: Makes no difference: a folder comes with the first thing that is in it.
        cleanup_tmp_directories: Look at once, and not only at the first save, for what dead
            writers left; live writers and what holdfast did not write stay.
        save_on_steps: Besides, save the steps that are in it.
        single_host_load_and_broadcast: Only False: opening a run is one listing, which each
            process makes for itself.
        todelete_subdir: A folder of the run to which removed steps go, on every store; from
            there `restore_from_trash` brings them back, and `empty_trash` gives them up.
        todelete_full_path: Only None: the trash of a run lies in the run.
        enable_background_delete: Always so: no save waits for a deletion.
        num_deletion_threads: How many steps are deleted at the same time; None is two.
        read_only: Write nothing: `save` declines and `delete` does nothing. The options of what
            would be written or removed have no effect then.
        enable_async_checkpointing: If false, `save` returns when the step is committed.
        async_options: See `holdfast.options.AsyncOptions`.
        multiprocessing_options: See `holdfast.options.MultiprocessingOptions`.
        should_save_fn: Given a step and the latest one, which may still be in the making, or
            None: whether to save. Takes the place of `save_interval_steps` and
            `save_on_steps`; a job that is to be stopped saves as well.
        file_options: See `holdfast.options.FileOptions`.
        atomicity_options: See `holdfast.options.AtomicityOptions`.
        save_root_metadata: Whether the `metadata` of the manager is stored.
        temporary_path_class: Only None: the storage decides how a step becomes visible.
        save_decision_policy: When to save, instead of all other options about that.
        preservation_policy: What to keep, instead of `max_to_keep`, `keep_time_interval` and
            `keep_period`. `best_fn` may be given as well, for `best_step`.
        prevent_write_metrics: Metrics are ranked while the process lives, and not stored.
        enable_should_save_is_saving_in_progress_check: If false, `save_decision_policy` is told
            that no save is under way.
        enable_per_process_directory_creation: Only False: one process saves.
        lightweight_initialize: Makes no difference: what is known of a step is always read when
            it is first asked for.
        takeover: At the first save or removal, take the run from whatever job writes to it,
            without waiting; that job can then neither commit nor remove steps.

    Raises:
        ValueError: A value is out of range, or two options exclude each other; or
            (`UnsupportedOptionError`) an option has no meaning here. The message says what is
            accepted.
        TypeError: A value is not of its type.

    Examples:
        >>> import holdfast as hf
        >>> hf.CheckpointManagerOptions(max_to_keep=3, keep_period=1000).max_to_keep
        3
        >>> hf.CheckpointManagerOptions(save_interval_steps=0)
        Traceback (most recent call last):
        ValueError: save_interval_steps is an integer >= 1 or None, got 0
    """

    save_interval_steps: int | None = 1
    max_to_keep: int | None = None
    keep_time_interval: datetime.timedelta | None = None
    keep_period: int | None = None
    best_fn: Callable[[Any], float] | None = None
    best_mode: str = "max"
    keep_checkpoints_without_metrics: bool = True
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    step_name_format: NameFormat | None = None
    create: bool = True
    cleanup_tmp_directories: bool = False
    save_on_steps: Container[int] | None = None
    single_host_load_and_broadcast: bool = False
    todelete_subdir: str | None = None
    todelete_full_path: str | None = None
    enable_background_delete: bool = False
    num_deletion_threads: int | None = None
    read_only: bool = False
    enable_async_checkpointing: bool = True
    async_options: options.AsyncOptions | None = None
    multiprocessing_options: options.MultiprocessingOptions | None = None
    should_save_fn: Callable[[int, int | None], bool] | None = None
    file_options: options.FileOptions | None = None
    atomicity_options: options.AtomicityOptions | None = None
    save_root_metadata: bool = True
    temporary_path_class: Any = None
    save_decision_policy: SaveDecisionPolicy | None = None
    preservation_policy: PreservationPolicy | None = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    enable_per_process_directory_creation: bool = False
    lightweight_initialize: bool = False
    takeover: bool = False

    def __post_init__(self) -> None:
        self.names()
        self.groups()
        self._check_saving()
        self._check_keeping()
        self._check_deleting()
        self._check_processes()

    def _check_saving(self) -> None:
        least = 0 if self.read_only else 1  # nothing is saved then, however it is said
        check_integer("save_interval_steps", self.save_interval_steps, at_least=least, or_none=True)
        if self.save_on_steps is not None:
            check_steps(self.save_on_steps)
        _check_callable("should_save_fn", self.should_save_fn, "a function of two steps")
        _check_policy(
            "save_decision_policy", self.save_decision_policy, SaveDecisionPolicy, "should_save"
        )

    def _check_keeping(self) -> None:
        check_integer("max_to_keep", self.max_to_keep, at_least=0, or_none=True)
        check_integer("keep_period", self.keep_period, at_least=1, or_none=True)
        if self.keep_time_interval is not None:
            check_duration("keep_time_interval", self.keep_time_interval)
        _check_callable("best_fn", self.best_fn, "a function of metrics")
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"best_mode is 'min' or 'max', got {self.best_mode!r}")
        _check_policy(
            "preservation_policy", self.preservation_policy, PreservationPolicy, "should_preserve"
        )
        others = ("max_to_keep", "keep_time_interval", "keep_period")
        given = [name for name in others if getattr(self, name) is not None]
        if self.preservation_policy is not None and given:
            raise ValueError(
                f"preservation_policy says what to keep, so {' and '.join(given)} cannot be given "
                "with it: put LatestN, EveryNSeconds or EveryNSteps into an AnyPreservationPolicy"
            )

    def _check_deleting(self) -> None:
        check_integer("num_deletion_threads", self.num_deletion_threads, at_least=1, or_none=True)
        if self.todelete_subdir is not None and self.todelete_full_path is not None:
            raise ValueError(
                "todelete_subdir and todelete_full_path exclude each other: a removed step goes to "
                "one place"
            )
        refuse_unless(
            self.todelete_full_path is None,
            "todelete_full_path",
            self.todelete_full_path,
            accepts="None; todelete_subdir='trash' keeps removed steps",
            because="the trash of a run lies in the run, on every store",
        )
        trash = self.trash()
        if trash is not None:
            trash.check_beside(self.names())

    def _check_processes(self) -> None:
        refuse_unless(
            not self.single_host_load_and_broadcast,
            "single_host_load_and_broadcast",
            self.single_host_load_and_broadcast,
            accepts="False",
            because="opening a run is one listing, and each process makes it for itself",
        )
        refuse_unless(
            not self.enable_per_process_directory_creation,
            "enable_per_process_directory_creation",
            self.enable_per_process_directory_creation,
            accepts="False",
            because="a save makes its folder when it writes, from one process",
        )

    def names(self) -> NameFormat:
        """How the folders of steps are called."""
        if self.step_name_format is not None:
            return check_name_format(self.step_name_format)
        return standard_name_format(
            step_prefix=self.step_prefix, step_format_fixed_length=self.step_format_fixed_length
        )

    def trash(self) -> Trash | None:
        """Where removed steps go; None deletes them."""
        return None if self.todelete_subdir is None else Trash(prefix=self.todelete_subdir)

    def deletion(self) -> Deletion:
        """How fast the data of removed steps is deleted."""
        at_once = self.num_deletion_threads
        return Deletion() if at_once is None else Deletion(at_once=operator.index(at_once))

    def groups(self) -> dict[str, Any]:
        """The groups of a `Context` that were given."""
        return dict(
            instance_options(
                async_options=self.async_options,
                multiprocessing_options=self.multiprocessing_options,
                file_options=self.file_options,
                atomicity_options=self.atomicity_options,
                temporary_path_class=self.temporary_path_class,
            )
        )


def _check_callable(name: str, value: Any, what: str) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {what} or None, got {value!r}")


def _check_policy(name: str, value: Any, kind: type, method: str) -> None:
    if value is not None:
        check_policy(name, value, kind, method)
