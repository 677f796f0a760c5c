"""The benchmark of jobs measures every contender in every operation."""

from rich.console import Console

from integration.benchmarks import jobs
from integration.benchmarks.__main__ import table

SAVERS = {"holdfast", "orbax", "orbax, no compression"}


def test_a_job_is_measured_and_its_rows_are_printed(tmp_path):
    figures = jobs.job_of(2, tmp_path, repetitions=1, scale=256)
    found = {}
    for figure in figures:
        assert len(figure.values) == 1
        assert figure.median > 0
        found.setdefault(figure.what, set()).add(figure.contender)
    for tree in jobs.TREES:
        for operation in ("durable save", "load"):
            assert found.pop(f"2 processes, {tree}, {operation}") == SAVERS | {"raw disk"}
        assert found.pop(f"2 processes, {tree}, async save blocks") == SAVERS
    assert not found
    assert not list(tmp_path.iterdir())  # it leaves nothing
    console = Console(width=110, record=True)
    console.print(table(figures))
    assert "2 processes, many, load" in console.export_text()
