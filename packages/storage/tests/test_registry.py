"""Which backend serves a URL."""

import importlib
import subprocess
import sys

import pytest

from holdfast_storage import errors, open_backend, register, unregister
from holdfast_storage.memory import MemoryBackend


def install(folder, name, entry_point):
    info = folder / f"{name.replace('-', '_')}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[holdfast.storage_backends]\n{entry_point}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.parametrize(
    ("url", "distribution"),
    [
        ("gs://bucket/x", "holdfast-gcs"),
        ("gcs://bucket/x", "holdfast-gcs"),
        ("s3://bucket/x", "holdfast-s3"),
        ("/local/x", "holdfast-local"),
    ],
)
def test_a_scheme_that_is_not_installed_says_what_to_install(site, monkeypatch, url, distribution):
    monkeypatch.setattr(sys, "path", [str(site)])  # where no distribution is
    with pytest.raises(errors.UnknownSchemeError, match=f"pip install {distribution}"):
        open_backend(url)


def test_a_scheme_that_nobody_knows_says_how_to_serve_it():
    with pytest.raises(errors.UnknownSchemeError, match=r"register\(\).*Installed: .*'memory'"):
        open_backend("weird://bucket/x")


def test_a_variable_that_was_corrected_is_followed(monkeypatch):
    class Told(MemoryBackend):
        environment = ("MINE_",)

    register("mine", lambda url, _options: Told(url))
    try:
        monkeypatch.setenv("MINE_ENDPOINT", "mistyped")
        first = open_backend("mine://a")
        monkeypatch.setenv("OTHER", "x")
        assert open_backend("mine://a") is first
        monkeypatch.setenv("MINE_ENDPOINT", "right")
        second = open_backend("mine://a")
        assert second is not first
        assert open_backend("mine://a") is second
        monkeypatch.delenv("MINE_ENDPOINT")
        assert open_backend("mine://a") not in (first, second)
    finally:
        unregister("mine")


def test_a_registration_serves_a_scheme_until_it_is_undone():
    opened = []

    def factory(url, options):
        opened.append((url, dict(options)))
        return MemoryBackend(url)

    register("Mine", factory)
    try:
        first = open_backend("mine://a/b", {"x": 1})
        assert open_backend("mine://a/b", {"x": 1}) is first
        assert open_backend("mine://a/b", {"x": 2}) is not first
        assert opened == [("mine://a/b", {"x": 1}), ("mine://a/b", {"x": 2})]
        unshared = {"credentials": object()}
        assert open_backend("mine://a/b", unshared) is not open_backend("mine://a/b", unshared)
    finally:
        unregister("mine")
    with pytest.raises(errors.UnknownSchemeError):
        open_backend("mine://a/b")


def test_a_registration_overrides_what_is_installed():
    installed = open_backend("memory://registry/a")
    register("memory", lambda url, options: MemoryBackend(url + "/elsewhere"))
    try:
        assert open_backend("memory://registry/a").root == "memory://registry/a/elsewhere"
    finally:
        unregister("memory")
    assert open_backend("memory://registry/a").root == installed.root


def test_an_installed_distribution_serves_its_scheme(site):
    install(site, "dist-one", "served = holdfast_storage.memory:open_backend")
    assert isinstance(open_backend("served://a/b"), MemoryBackend)


@pytest.mark.parametrize("second", ["two:open", "one:open"])
def test_two_claimants_of_a_scheme_are_an_error(site, second):
    install(site, "dist-one", "contested = one:open")
    install(site, "dist-two", f"contested = {second}")
    with pytest.raises(errors.InvalidURLError, match="claimed by dist-one and dist-two"):
        open_backend("contested://a/b")


def test_importing_storage_loads_nothing_heavy():
    script = (
        "import holdfast_storage, sys;"
        "holdfast_storage.open_backend('memory://a/b');"
        "print([m for m in ('jax', 'tensorstore', 'fsspec', 'numpy.testing') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
