"""Jobs that end with their test."""

import pytest

from integration.multiprocess import job


@pytest.fixture
def run():
    """Runs a job to its end; gives what each process returned."""
    started = []

    def begin(*arguments, **how):
        started.append(job.start(*arguments, **how))
        return started[-1].results()

    yield begin
    for each in started:
        each.end()
