"""What every test of a crash asks of what is left."""

import os

import numpy as np
import pytest

from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import RenameCommit


@pytest.fixture(scope="session")
def assert_whole():
    """Every bit of a loaded state is that of its number."""

    def check(found, number):
        assert found["number"] == number
        assert (found["numpy"] == np.full(60_000, number)).all()
        assert (np.asarray(found["jax"]) == number).all()
        assert all((layer == number).all() for layer in found["layers"])

    return check


@pytest.fixture(scope="session")
def sweep():
    """Removes what dead writers left in a folder; by default replaced data may stay."""

    def run(folder, grace_s=600.0):
        return get_loop().run(RenameCommit(open_backend(folder), grace_s=grace_s).sweep(""))

    return run


@pytest.fixture(scope="session")
def left_in():
    """What is in a folder, besides the temporary file of a put, and the empty file that
    asks the store's clock, which were killed half-way: nobody can know whose they are, so
    they go when they are an hour old. A run's lease stays, and the folder of announcements
    once they are gone."""
    unknown = (".put-", ".holdfast-clock-", "_lease")

    def known(folder):
        return [name for name in os.listdir(folder) if not name.startswith(unknown)]

    def names(folder):
        return sorted(n for n in known(folder) if n != "_collecting" or known(folder / n))

    return names
