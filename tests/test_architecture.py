"""The rooms of the workspace, and what may not be carried from one into another."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("packages", "backends")
MEMBERS = sorted(p.parent for room in ROOMS for p in ROOT.glob(f"{room}/*/pyproject.toml"))
SOURCES = sorted(p for room in ROOMS for p in ROOT.glob(f"{room}/*/src/**/*.py"))
BELOW_JAX = ("holdfast_metadata", "holdfast_storage", "holdfast_local")
CLOUD_SDKS = ("boto3", "botocore", "aiobotocore", "s3fs", "gcsfs", "google.cloud", "azure")


def test_import_contracts_hold():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    ended = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_package_is_under_the_import_contracts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = set(settings["tool"]["importlinter"]["root_packages"])
    assert named == {p.name for m in MEMBERS for p in (m / "src").iterdir() if p.is_dir()}


@pytest.mark.parametrize("module", BELOW_JAX)
def test_the_lower_half_imports_neither_jax_nor_tensorstore(module, run_python):
    loaded = run_python(
        f"import pkgutil, importlib, sys, {module} as m\n"
        "for found in pkgutil.walk_packages(m.__path__, m.__name__ + '.'):\n"
        "    if '.testing' not in found.name: importlib.import_module(found.name)\n"
        "print(*sys.modules, sep='\\n')"
    ).split()
    assert not {"jax", "jaxlib", "tensorstore"} & set(loaded)


def test_importing_holdfast_loads_neither_jax_nor_a_cloud_sdk(run_python):
    loaded = set(run_python("import holdfast, sys; print(*sys.modules, sep='\\n')").split())
    assert not loaded & {"jax", "numpy", "tensorstore", "holdfast_checkpointer", *CLOUD_SDKS}


def test_using_every_public_name_loads_no_cloud_sdk_and_starts_no_device(run_python):
    loaded, started = run_python(
        "import sys, holdfast as hf\n"
        "for name in hf.__all__: getattr(hf, name)\n"
        "from jax._src import xla_bridge\n"
        "print(*sys.modules, sep=','); print(xla_bridge.backends_are_initialized())"
    ).split()
    assert not set(loaded.split(",")) & set(CLOUD_SDKS)
    assert started == "False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_cloud_scheme_is_spelled_outside_of_backends(path):
    if path.is_relative_to(ROOT / "backends"):
        return
    tree = ast.parse(path.read_text("utf-8"))
    texts = {n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    prose = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    spelled = [n.value for n in texts - prose if re.search(r"\b(gs|gcs|s3|az|abfs)://", n.value)]
    assert not spelled


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file_is_short_enough_to_read(path):
    assert len(path.read_text("utf-8").splitlines()) <= 600


@pytest.mark.parametrize("member", MEMBERS, ids=lambda p: p.name)
def test_a_package_is_complete(member):
    for name in ("README.md", "CHANGELOG.md", "tests"):
        assert (member / name).exists(), name
    (package,) = (p for p in (member / "src").iterdir() if p.is_dir())
    assert (package / "py.typed").exists()


def test_no_lock_file_is_tracked():
    listed = subprocess.run(
        ["git", "ls-files", "*uv.lock"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout == ""
