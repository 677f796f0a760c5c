"""Orbax, alone in a fresh process, reads what holdfast wrote."""

import dataclasses

import pytest

import holdfast as hf
from integration.interop.trees import CASES

NAMED = ("v1", "v1_target", "v1_elsewhere", "v1_checkpointables", "v1_metadata")
ITEM = ("v0_pytree", "v0_pytree_target", "v0_standard", "v0_standard_target", "v0_metadata")
COMPOSITE = ("composite", "composite_args")
FLAT = ("v1", "v1_target", *ITEM)
RUN = ("training", "manager", "manager_args")


@dataclasses.dataclass(frozen=True)
class Read:
    """One reading: of which layout, of which case, and how."""

    layout: str
    case: str
    how: str

    @property
    def id(self):
        return f"{self.layout}-{self.case}-{self.how}"

    def path(self, folder):
        below = {"item": f"named/{self.case}/state"}.get(self.layout, f"{self.layout}/{self.case}")
        return folder / below


NOT_IN_ORBAX = {
    ("strings", "v0_standard_target"): "its StandardRestore refuses text",
    ("scalars", "v1_metadata"): "its metadata of a Python bool is an error, of its own too",
    ("numpy_scalars", "v1_metadata"): "likewise",
}
# Text, and what is no tree: our StandardSave refuses it as Orbax's does.
NOT_STANDARD = ("strings", "bare_jax", "bare_numpy", "bare_number")
READS = [
    *(Read("named", case, how) for case in CASES for how in (*NAMED, *COMPOSITE)),
    *(Read("item", case, how) for case in CASES for how in ITEM),
    *(Read("flat", case, how) for case in CASES for how in FLAT),
    *(Read("run", "core", how) for how in RUN),
]
READS = [read for read in READS if (read.case, read.how) not in NOT_IN_ORBAX]


def write_all(folder):
    for name, make in CASES.items():
        tree = make().tree
        hf.save(folder / "named" / name, tree, custom_metadata={"case": name})
        kind = hf.PyTreeCheckpointHandler if name in NOT_STANDARD else hf.StandardCheckpointHandler
        with hf.Checkpointer(kind()) as checkpointer:
            checkpointer.save(folder / "flat" / name, tree)
    with hf.training.Checkpointer(folder / "run" / "core", custom_metadata={"of": "run"}) as run:
        for step in (0, 2, 10):
            loss = 0.5 if step == 2 else 1.0
            about = {"of": f"step {step}"}
            tree = CASES["core"]().tree
            run.save(step, tree, metrics={"loss": loss}, custom_metadata=about, force=True)


@pytest.fixture(scope="module")
def report(read_with_orbax, tmp_path_factory):
    """Everything is written, moved to another path, and read there."""
    written = tmp_path_factory.mktemp("holdfast") / "written"
    write_all(written)
    moved = written.rename(written.with_name("moved"))
    reads = sorted(READS, key=lambda read: read.case)
    return read_with_orbax(
        [{"id": r.id, "how": r.how, "case": r.case, "path": str(r.path(moved))} for r in reads]
    )


@pytest.mark.parametrize("read", READS, ids=lambda read: read.id)
def test_orbax_reads_the_checkpoint_exactly(report, read):
    assert report[read.id] == []
