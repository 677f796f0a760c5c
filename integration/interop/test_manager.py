"""CheckpointManager and Orbax's of that name: each goes on in the other's runs.

Also: every field of Orbax's options has an effect here, or is refused.
"""

import dataclasses
import datetime

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import holdfast as hf

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "step": np.asarray(3)}
NAMES = {
    "plain": {},
    "prefix": {"step_prefix": "ckpt"},
    "padded": {"step_format_fixed_length": 6},
    "both": {"step_prefix": "ckpt", "step_format_fixed_length": 6},
}


def loss(metrics):
    return metrics["loss"]


def lowest(library, **names):
    return library.CheckpointManagerOptions(best_fn=loss, best_mode="min", **names)


def unnamed(library, value):
    return library.args.StandardSave({**TREE, "step": np.asarray(value)})


def named(library, value):
    return library.args.Composite(
        state=unnamed(library, value),
        rest=library.args.PyTreeSave([jnp.ones(2), 5]),
        config=library.args.JsonSave({"layers": value}),
        vector=library.args.ArraySave(np.arange(4)),
    )


def write(library, path, args, names, steps):
    """Saves steps with a manager of one library; the loss falls until step 2."""
    with library.CheckpointManager(
        path, options=lowest(library, **names), metadata={"by": library.__name__}
    ) as manager:
        for step in steps:
            metrics = {"loss": abs(step - 2.0), "of": [1, None]}
            assert manager.save(step, args=args(library, step), metrics=metrics)


def check_run(library, path, names, steps):
    """What a manager of one library sees in a run; leaves it open."""
    manager = library.CheckpointManager(path, options=lowest(library, **names))
    assert sorted(manager.all_steps()) == list(steps)
    assert manager.latest_step() == steps[-1]
    assert manager.best_step() == 2
    for step in steps:
        assert manager.metrics(step) == {"loss": abs(step - 2.0), "of": [1, None]}
    return manager


def check_unnamed(library, manager, steps):
    for step in steps:
        found = manager.restore(step, args=library.args.StandardRestore(TREE))
        np.testing.assert_array_equal(found["w"], TREE["w"])
        assert found["step"] == step
        assert manager.restore(step)["step"] == step
    assert manager.metadata(steps[0]).metrics == manager.metrics(steps[0])


def check_named(library, manager, steps):
    a = library.args
    for step in steps:
        wanted = a.Composite(
            state=a.StandardRestore(TREE),
            rest=a.PyTreeRestore([jnp.zeros(2), 0]),
            config=a.JsonRestore(),
            vector=a.ArrayRestore(),
        )
        for found in (manager.restore(step, args=wanted), manager.restore(step)):
            np.testing.assert_array_equal(found.state["w"], TREE["w"])
            assert found["state"]["step"] == step
            assert found.rest[1] == 5
            assert found.config == {"layers": step}
            np.testing.assert_array_equal(found.vector, np.arange(4))
    items = {"state", "rest", "config", "vector", "metrics"}
    assert set(manager.item_metadata(steps[0])) == items


KINDS = {"unnamed": (unnamed, check_unnamed), "named": (named, check_named)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", NAMES)
def test_a_run_of_orbax_s_manager_is_listed_restored_and_gone_on_with(kind, names, tmp_path):
    args, check = KINDS[kind]
    names = NAMES[names]
    write(ocp, tmp_path, args, names, [1, 2])
    ours = check_run(hf, tmp_path, names, [1, 2])
    check(hf, ours, [1, 2])
    assert ours.metadata().custom_metadata == {"by": "orbax.checkpoint"}
    ours.close()
    write(hf, tmp_path, args, names, [3, 4])
    ours = check_run(hf, tmp_path, names, [1, 2, 3, 4])
    check(hf, ours, [1, 2, 3, 4])
    theirs = check_run(ocp, tmp_path, names, [1, 2, 3, 4])
    check(ocp, theirs, [1, 2, 3, 4])
    theirs.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["plain", "both"])
def test_orbax_s_manager_lists_restores_and_goes_on_with_ours(kind, names, tmp_path):
    args, check = KINDS[kind]
    names = NAMES[names]
    write(hf, tmp_path, args, names, [1, 2])
    theirs = check_run(ocp, tmp_path, names, [1, 2])
    check(ocp, theirs, [1, 2])
    assert theirs.metadata().custom_metadata == {"by": "holdfast"}
    theirs.close()
    write(ocp, tmp_path, args, names, [3, 4])
    ours = check_run(hf, tmp_path, names, [1, 2, 3, 4])
    check(hf, ours, [1, 2, 3, 4])


def test_a_run_is_handed_over_with_retention_and_a_read_only_orbax_beside_it(tmp_path):
    write(ocp, tmp_path, unnamed, {}, [1, 2])
    options = hf.CheckpointManagerOptions(max_to_keep=1, best_fn=loss, best_mode="min")
    with hf.CheckpointManager(tmp_path, options=options) as ours:
        for step in (3, 4, 5):
            ours.save(step, args=unnamed(hf, step), metrics={"loss": float(step)})
        ours.wait_until_finished()
        assert ours.best_step() == 2
        assert ours.all_steps() == [2, 5]  # Orbax's were removed by the same rule
    reader = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(tmp_path, options=reader) as theirs:
        assert sorted(theirs.all_steps()) == [2, 5]


def test_metadata_that_old_versions_of_orbax_stored_is_read(tmp_path):
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as old:
        old.save(tmp_path / "metadata", args=ocp.args.JsonSave({"version": 1}))
    with ocp.CheckpointManager(tmp_path) as theirs:
        assert theirs.metadata().custom_metadata == {"version": 1}
    with hf.CheckpointManager(tmp_path, metadata={"version": 2}) as ours:
        assert ours.metadata().custom_metadata == {"version": 1}
        ours.save(0, args=hf.args.JsonSave(1))
        ours.wait_until_finished()
        assert ours.all_steps() == [0]


def test_numbers_that_json_does_not_have_are_read_where_orbax_wrote_them(tmp_path):
    a = ocp.args
    with ocp.CheckpointManager(tmp_path, options=lowest(ocp)) as theirs:
        items = a.Composite(s=a.StandardSave(TREE), j=a.JsonSave({"limit": float("inf")}))
        theirs.save(0, args=items, metrics={"loss": float("nan")})
        theirs.save(1, args=items, metrics={"loss": 1.0})
    with hf.CheckpointManager(tmp_path, options=lowest(hf)) as ours:
        assert ours.best_step() == 1
        assert ours.restore(0).j == {"limit": float("inf")}
        assert np.isnan(ours.restore(0).metrics["loss"])
        assert np.isnan(ours.metadata(0).metrics["loss"])
        assert np.isnan(ours.metrics(0)["loss"])


def test_policies_and_handlers_of_orbax_s_can_be_given(tmp_path):
    policy = v1.training.preservation_policies.LatestN(1)
    when = v1.training.save_decision_policies.FixedIntervalPolicy(2)
    options = hf.CheckpointManagerOptions(preservation_policy=policy, save_decision_policy=when)
    with hf.CheckpointManager(
        tmp_path, options=options, item_handlers=ocp.StandardCheckpointHandler()
    ) as ours:
        for step in range(5):
            assert ours.save(step, args=ocp.args.StandardSave(TREE)) == (step % 2 == 0)
        ours.wait_until_finished()
        assert ours.all_steps() == [4]
        found = ours.restore(4, args=ocp.args.StandardRestore(TREE))
        np.testing.assert_array_equal(found["w"], TREE["w"])


def test_orbax_s_own_objects_are_refused_where_they_mean_something_else(tmp_path):
    with pytest.raises(TypeError, match=r"got orbax\.checkpoint"):
        hf.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions())
    with pytest.raises(ValueError, match=r"got orbax\.checkpoint"):
        hf.CheckpointManager(tmp_path, ocp.PyTreeCheckpointer())
    with pytest.raises(TypeError, match=r"holdfast's options\.AsyncOptions, got orbax"):
        hf.CheckpointManagerOptions(async_options=ocp.AsyncOptions())


# A value that is not the default: what it does is shown by the tests of the manager package.
HONOURED = {
    "save_interval_steps": 5,
    "max_to_keep": 2,
    "keep_time_interval": datetime.timedelta(hours=1),
    "keep_period": 3,
    "best_fn": loss,
    "best_mode": "min",
    "keep_checkpoints_without_metrics": False,
    "step_prefix": "ckpt",
    "step_format_fixed_length": 4,
    "step_name_format": hf.path.step.standard_name_format(step_prefix="s"),
    "cleanup_tmp_directories": True,
    "save_on_steps": frozenset({1}),
    "todelete_subdir": "trash",
    "num_deletion_threads": 3,
    "read_only": True,
    "enable_async_checkpointing": False,
    "async_options": hf.options.AsyncOptions(timeout_secs=5),
    "multiprocessing_options": hf.options.MultiprocessingOptions(primary_host=None),
    "should_save_fn": lambda step, latest: True,
    "file_options": hf.options.FileOptions(path_permission_mode=0o750),
    "atomicity_options": hf.options.AtomicityOptions(mode="atomic_rename"),
    "save_root_metadata": False,
    "save_decision_policy": hf.training.save_decision_policies.InitialSavePolicy(),
    "preservation_policy": hf.training.preservation_policies.LatestN(2),
    "prevent_write_metrics": True,
    "enable_should_save_is_saving_in_progress_check": False,
}
# What they ask for happens anyway, or nothing here depends on it: the docstring says so.
ALWAYS = {
    "create": False,
    "enable_background_delete": True,
    "lightweight_initialize": True,
}
REFUSED = {
    "single_host_load_and_broadcast": True,
    "todelete_full_path": "trash",
    "temporary_path_class": object,
    "enable_per_process_directory_creation": True,
}
FIELDS = {field.name: field for field in dataclasses.fields(ocp.CheckpointManagerOptions)}


def test_every_option_of_orbax_s_is_decided_about_once():
    decided = [*HONOURED, *ALWAYS, *REFUSED]
    assert len(decided) == len(set(decided))
    assert set(decided) == set(FIELDS)
    ours = [field.name for field in dataclasses.fields(hf.CheckpointManagerOptions)]
    assert ours[: len(FIELDS)] == list(FIELDS)  # by position, too


def test_orbax_s_defaults_are_ours():
    theirs, ours = ocp.CheckpointManagerOptions(), hf.CheckpointManagerOptions()
    groups = {"multiprocessing_options", "file_options"}  # None is the context's
    for name in FIELDS.keys() - groups - {"save_on_steps"}:
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("name", HONOURED | ALWAYS)
def test_an_option_that_is_honoured_is_accepted_and_explained(name):
    hf.CheckpointManagerOptions(**{name: (HONOURED | ALWAYS)[name]})
    assert f"{name}:" in hf.CheckpointManagerOptions.__doc__


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_without_a_meaning_is_refused_in_words(name):
    with pytest.raises(hf.errors.UnsupportedOptionError) as caught:
        hf.CheckpointManagerOptions(**{name: REFUSED[name]})
    assert f"{name}={REFUSED[name]!r}" in str(caught.value)
    assert "Accepted:" in str(caught.value)
    assert f"{name}:" in hf.CheckpointManagerOptions.__doc__


def test_our_manager_has_every_method_of_orbax_s():
    theirs = {name for name in dir(ocp.CheckpointManager) if not name.startswith("_")}
    assert theirs <= set(dir(hf.CheckpointManager))
