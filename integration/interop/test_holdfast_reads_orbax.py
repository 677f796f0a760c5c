"""holdfast reads what Orbax wrote, in every configuration that Orbax has."""

import pytest

import holdfast as hf
from integration.interop.orbax_writers import WRITERS
from integration.interop.trees import CASES, blank, differences, elsewhere

EVERYWHERE = ("core", "sharded", "prng_keys", "scalars", "strings", "containers", "zeros")
ONCE = (
    "large",
    "odd_names",
    "optimizer",
    "bare_jax",
    "bare_numpy",
    "bare_number",
    "dtypes",
    "many",
)
NOT_IN_ORBAX = {("strings", "v0-standard"): "its StandardSave refuses text"}
PAIRS = [
    *((writer, case) for writer in WRITERS for case in EVERYWHERE),
    *((writer, case) for writer in ("v1-ocdbt-zarr3-zstd", "v0-ocdbt-zarr2-zstd") for case in ONCE),
    ("v0-files-zarr2-zstd", "dtypes"),
]
PAIRS = [(writer, case) for writer, case in PAIRS if (case, writer) not in NOT_IN_ORBAX]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes each checkpoint once; returns its path."""
    root = tmp_path_factory.mktemp("orbax")
    made = {}

    def write(writer, case):
        if (writer, case) not in made:
            path = root / f"{len(made)}"
            WRITERS[writer](path, CASES[case]().tree)
            made[writer, case] = path
        return made[writer, case]

    return write


@pytest.mark.parametrize(("writer", "case"), PAIRS)
def test_it_comes_back_without_a_target(written, writer, case):
    assert differences(hf.load(written(writer, case)), CASES[case]().plain) == []


@pytest.mark.parametrize(("writer", "case"), PAIRS)
def test_it_comes_back_as_the_target_asks(written, writer, case):
    tree = CASES[case]().tree
    assert differences(hf.load(written(writer, case), blank(tree)), tree) == []


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("case", ["core", "sharded", "prng_keys"])
def test_it_comes_back_on_other_devices(written, writer, case):
    tree = elsewhere(CASES[case]().tree)
    assert differences(hf.load(written(writer, case), blank(tree)), tree) == []
