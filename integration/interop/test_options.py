"""Each field of each of Orbax's v1 options has an effect here, or is refused: none is ignored.

The fields come from Orbax's own classes, so a new one fails until it is decided about.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from orbax.checkpoint import v1 as ocp

import holdfast as hf

ROOT = Path(__file__).resolve().parents[2]
TESTS = "packages/checkpointer/tests/"

# A value that is not the default, and the test that shows what it does.
HONOURED = {
    "AsyncOptions.timeout_secs": (5, "test_async", "test_a_deadline_names"),
    "AsyncOptions.post_finalization_callback": (
        print, "test_options", "test_the_callback_is_called_after_the_commit",
    ),
    "AtomicityOptions.mode": ("commit_file", "test_options", "test_another_way_to_commit"),
    "MultiprocessingOptions.primary_host": (1, "test_options", "test_processes_that_the_job"),
    "MultiprocessingOptions.active_processes": (
        {0, 1}, "test_options", "test_processes_that_the_job",
    ),
    "FileOptions.path_permission_mode": (0o750, "test_options", "test_directories_get_the_mode"),
    "PyTreeOptions.Loading.partial_load": (True, "test_restore_args", "partial"),
    "ArrayOptions.Saving.storage_options": (
        hf.options.ArraySaveOptions.StorageOptions(chunk_byte_size=8),
        "test_storage_options", "chunk",
    ),
    "ArrayOptions.Saving.scoped_storage_options_creator": (
        lambda path, value: None, "test_storage_options", "by_a_function|creator|scoped",
    ),
    "ArrayOptions.Saving.use_compression": (False, "test_storage_options", "compress"),
    "ArrayOptions.Saving.ocdbt_target_data_file_size": (
        0, "test_storage_options", "data_file|file_size",
    ),
    "AtomicityOptions.allow_legacy_atomic_rename": (
        True, "../../../integration/stores/test_orbax_saves", "taken_when_asked",
    ),
    "ArrayOptions.Saving.use_replica_parallel": (True, "test_sharing", "replicas_are_cut"),
    "ArrayOptions.Saving.min_slice_bytes_for_replica_parallel": (
        5, "test_sharing", "in_no_smaller_slices",
    ),
    "ArrayOptions.Saving.max_replicas_for_replica_parallel": (
        5, "test_sharing", "replicas_are_cut",
    ),
    "ArrayOptions.Loading.use_load_and_broadcast": (
        True, "../../../integration/multiprocess/test_loads", "one_replica_reads",
    ),
    "ArrayOptions.Loading.load_and_broadcast_options": (
        hf.options.LoadAndBroadcastOptions(primary_replica_id=1),
        "test_restore_args", "which_replica_reads",
    ),
    "ArrayOptions.Loading.enable_padding_and_truncation": (True, "test_restore_args", "padded"),
    "ArrayOptions.Loading.raise_array_data_missing_error": (False, "", "missing"),
    "CheckpointablesOptions.registry": (
        hf.handlers.local_registry(), "test_named_handlers", "test_a_handler_of_a_user_s",
    ),
    "MemoryOptions.write_concurrent_bytes": (
        1 << 20, "test_options", "test_arrays_are_written_in_batches",
    ),
    "MemoryOptions.read_concurrent_bytes": (1 << 20, "test_options", "test_memory_bounds"),
    "MemoryOptions.transfer_concurrent_bytes": (1 << 20, "test_options", "on_the_way"),
    "MemoryOptions.deepcopy_host_arrays": (False, "test_options", "not_copied"),
    "SafetensorsOptions.max_over_read_ratio": (2.0, "test_safetensors", "ratio|gaps"),
    "SafetensorsOptions.read_chunk_bytes": (1 << 20, "test_safetensors", "chunk|requests"),
}  # fmt: skip

# Values whose effect is what happens anyway: the class's docstring says so.
ALWAYS = {
    "MultiprocessingOptions.barrier_sync_key_prefix": "mine",
    "FileOptions.skip_sync_file_validations": True,
    "PyTreeOptions.Saving.pytree_metadata_options": hf.options.PyTreeMetadataOptions(
        support_rich_types=True
    ),
}

REFUSED = {
    "AsyncOptions.create_directories_asynchronously": False,
    "FileOptions.path_class": str,
    "PathwaysOptions.checkpointing_impl": object(),
    "DeletionOptions.GcsDeletionOptions.todelete_full_path": "trash",
    "MemoryOptions.regulator_options": object(),
    "MemoryOptions.expected_surge_bytes": 5,
    "MemoryOptions.is_prioritized_key_fn": len,
    "MemoryOptions.serialization_status_callback": object(),
    "ArrayOptions.Saving.use_ocdbt": False,
    "ArrayOptions.Saving.use_zarr3": False,
    "ArrayOptions.Saving.enable_pinned_host_transfer": True,
    "ArrayOptions.Saving.enable_post_merge_validation": False,
    "ArrayOptions.Saving.enable_replica_parallel_separate_folder": True,
    "ArrayOptions.Saving.enable_write_sharding_file": False,
    "ArrayOptions.Saving.array_metadata_store": None,
}


def option_classes():
    """Orbax's classes with ours, by name; nested ones after their owner's."""
    for name, theirs in inspect.getmembers(ocp.options, dataclasses.is_dataclass):
        ours = getattr(hf.options, name)
        yield name, theirs, ours
        for inner, nested in inspect.getmembers(theirs, dataclasses.is_dataclass):
            is_inner = inspect.isclass(nested) and nested.__qualname__.startswith(f"{name}.")
            if is_inner and inner != "RegulatorOptions":  # the type of a value that is refused
                yield f"{name}.{inner}", nested, getattr(ours, inner)


CLASSES = {name: (theirs, ours) for name, theirs, ours in option_classes()}
GROUPS = {f"{name}.{inner}" for name in CLASSES for inner in ("saving", "loading")}
GROUPS |= {"DeletionOptions.gcs_deletion_options"}  # fields that hold the nested classes
FIELDS = {
    f"{name}.{field.name}": field
    for name, (theirs, _) in CLASSES.items()
    for field in dataclasses.fields(theirs)
    if f"{name}.{field.name}" not in GROUPS
}


def ours_of(field):
    return CLASSES[field.rpartition(".")[0]][1]


def test_every_field_is_decided_about_once():
    decided = [*HONOURED, *ALWAYS, *REFUSED]
    assert len(decided) == len(set(decided))
    assert set(decided) == set(FIELDS)


@pytest.mark.parametrize("name", CLASSES)
def test_our_class_has_orbax_s_fields_and_accepts_their_defaults(name):
    theirs, ours = CLASSES[name]
    names = {field.name for field in dataclasses.fields(ours)}
    assert {field.name for field in dataclasses.fields(theirs)} <= names
    given = {}
    for field in dataclasses.fields(theirs):
        value = getattr(theirs(), field.name)
        if f"{name}.{field.name}" not in GROUPS and not dataclasses.is_dataclass(value):
            given[field.name] = value
    ours(**given)


@pytest.mark.parametrize("field", HONOURED)
def test_an_option_that_has_an_effect_is_accepted_and_has_a_test(field):
    value, file, test = HONOURED[field]
    ours_of(field)(**{field.rpartition(".")[2]: value})
    text = "\n".join(p.read_text("utf-8") for p in (ROOT / TESTS).glob(f"{file or 'test_'}*.py"))
    found = [n for n in re.findall(r"def (test_\w+)", text) if re.search(test, n)]
    assert found, f"no test in {file} is called {test}"


@pytest.mark.parametrize("field", ALWAYS)
def test_an_option_that_is_always_on_is_accepted_and_explained(field):
    name = field.rpartition(".")[2]
    ours_of(field)(**{name: ALWAYS[field]})
    assert f"{name}:" in inspect.getdoc(ours_of(field)) or "support_rich_types" in inspect.getdoc(
        hf.options.PyTreeMetadataOptions
    )


@pytest.mark.parametrize("field", REFUSED)
def test_an_option_without_a_meaning_is_refused_in_words(field):
    name = field.rpartition(".")[2]
    with pytest.raises(hf.errors.UnsupportedOptionError) as caught:
        ours_of(field)(**{name: REFUSED[field]})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, NotImplementedError)
    assert f"{name}={REFUSED[field]!r}" in str(caught.value)
    assert "Accepted:" in str(caught.value)
    assert f"{name}:" in inspect.getdoc(ours_of(field))


@pytest.mark.parametrize("kind", ["AtomicityMode", "CheckpointLayout"])
def test_our_enumerations_have_orbax_s_members(kind):
    theirs, ours = getattr(ocp.options, kind), getattr(hf.options, kind)
    assert {m.name: m.value for m in theirs} == {m.name: m.value for m in ours}


def test_a_context_has_every_group_of_orbax_s():
    old = {n for n in dir(ocp.Context) if n.endswith("_options")}
    theirs = {n for n in dir(ocp.Context) if not n.startswith("_")} - old
    context = hf.Context()
    assert all(hasattr(context, name) for name in theirs)
    for name in old:
        with pytest.raises(AttributeError, match="the name is"):
            getattr(context, name)
