"""What `import holdfast` gives, and what it promises by its names."""

import ast
import builtins
import importlib
import inspect
import operator
import pkgutil
from pathlib import Path

import pytest

import holdfast as hf

SUBMODULES = (
    "args",
    "arrays",
    "checkpoint_manager",
    "checkpoint_utils",
    "errors",
    "handlers",
    "options",
    "partial",
    "path",
    "training",
    "tree",
)
PACKAGES = (
    "holdfast_metadata",
    "holdfast_storage",
    "holdfast_checkpointer",
    "holdfast_manager",
    "holdfast_local",
)


def test_the_public_names_are_these_and_no_others():
    assert sorted(hf.__all__) == [
        "AbstractCheckpointManager",
        "ArrayCheckpointHandler",
        "AsyncCheckpointHandler",
        "AsyncCheckpointer",
        "AsyncResponse",
        "CheckpointHandler",
        "CheckpointHandlerRegistry",
        "CheckpointManager",
        "CheckpointManagerOptions",
        "CheckpointMetadata",
        "CheckpointableHandler",
        "Checkpointer",
        "CompositeCheckpointHandler",
        "CompositeOptions",
        "Context",
        "DefaultCheckpointHandlerRegistry",
        "JaxRandomKeyCheckpointHandler",
        "JsonCheckpointHandler",
        "NumpyRandomKeyCheckpointHandler",
        "PLACEHOLDER",
        "ProtoCheckpointHandler",
        "PyTreeCheckpointHandler",
        "PyTreeCheckpointer",
        "StandardCheckpointHandler",
        "StandardCheckpointer",
        "StatefulCheckpointable",
        "StepMetadata",
        "TreeMetadata",
        "VerifyReport",
        "args",
        "arrays",
        "checkpoint_manager",
        "checkpoint_utils",
        "checkpointables_metadata",
        "copy",
        "copy_async",
        "create_default_handler_registry",
        "delete",
        "delete_async",
        "errors",
        "export_safetensors",
        "handlers",
        "is_checkpoint",
        "load",
        "load_async",
        "load_checkpointables",
        "load_checkpointables_async",
        "metadata",
        "options",
        "partial",
        "path",
        "save",
        "save_async",
        "save_checkpointables",
        "save_checkpointables_async",
        "training",
        "tree",
        "verify",
    ]


@pytest.mark.parametrize("name", hf.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(hf, name)
    assert name == "PLACEHOLDER" or inspect.getdoc(value)
    assert name in dir(hf)


@pytest.mark.parametrize("module", SUBMODULES)
def test_every_name_of_a_submodule_is_there_and_explained(module):
    found = importlib.import_module(f"holdfast.{module}")
    assert getattr(hf, module) is found
    for name in found.__all__:
        assert inspect.getdoc(getattr(found, name)), name


def test_type_checkers_and_the_interpreter_see_the_same_names():
    tree = ast.parse(Path(hf.__file__).read_text("utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    imported = {a.name: n.module for n in block.body for a in n.names}
    submodules = {name for name, module in imported.items() if module == "holdfast"}
    assert submodules == set(hf._SUBMODULES) == set(SUBMODULES)
    assert {n: m for n, m in imported.items() if n not in submodules} == hf._SOURCES
    assert set(hf._SOURCES) | submodules | {"PLACEHOLDER"} == set(hf.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sav'"):
        hf.sav  # noqa: B018


@pytest.mark.parametrize("name", hf._RENAMED)
def test_an_old_name_of_orbax_s_is_told_and_not_carried_over(name):
    with pytest.raises(AttributeError, match=f"its name is '{hf._RENAMED[name]}'"):
        getattr(hf, name)
    assert operator.attrgetter(hf._RENAMED[name])(hf)


def test_the_placeholder_is_the_ellipsis():
    assert hf.PLACEHOLDER is ...


def raised_errors():
    """Every public exception class that the packages define."""
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if ".testing" not in found.name:
                yield from errors_of(importlib.import_module(found.name))


def errors_of(module):
    for value in vars(module).values():
        if not inspect.isclass(value) or value.__module__ != module.__name__:
            continue
        # What is neither is a signal between functions of one package, and never leaves it.
        if issubclass(value, hf.errors.HoldfastError) or value.__name__.endswith("Error"):
            yield value


def test_every_error_is_exported_and_belongs_to_the_one_hierarchy():
    missing = {e.__name__ for e in raised_errors()} - set(hf.errors.__all__)
    assert not missing
    for name in hf.errors.__all__:
        assert issubclass(getattr(hf.errors, name), hf.errors.HoldfastError)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("CheckpointNotFoundError", FileNotFoundError),
        ("CheckpointDeletedError", FileNotFoundError),
        ("StepNotFoundError", FileNotFoundError),
        ("CommitConflictError", FileExistsError),
        ("DestinationOccupiedError", FileExistsError),
        ("StepAlreadyExistsError", FileExistsError),
        ("StepAlreadyExistsError", ValueError),
        ("DamagedCheckpointError", ValueError),
        ("IncompleteCheckpointError", ValueError),
        ("NewerFormatError", ValueError),
        ("UnknownSchemeError", ValueError),
        ("TreeMismatchError", ValueError),
        ("UnsupportedLeafError", ValueError),
        ("StorageFullError", OSError),
        ("StoragePermissionError", PermissionError),
        ("StorageTimeoutError", TimeoutError),
        ("UnsupportedOperationError", NotImplementedError),
    ],
)
def test_an_error_is_also_the_builtin_that_callers_catch(name, builtin):
    assert builtin.__name__ in vars(builtins)
    assert issubclass(getattr(hf.errors, name), builtin)
