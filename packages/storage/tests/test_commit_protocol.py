import pytest

from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.commit_tests import CommitTests
from holdfast_storage.testing.tables import TableBackend


class TestPointer(CommitTests):
    thorough = True

    @pytest.fixture
    def backend(self):
        return TableBackend()


class TestRenameWithExchange(CommitTests):
    thorough = True

    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True, exchange=True)


class TestRenameWithoutExchange(CommitTests):
    thorough = True

    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True)


class TestDecidedRename(CommitTests):
    thorough = True

    @pytest.fixture
    def backend(self):
        return TableBackend(decided=True)


class TestMemory(CommitTests):
    @pytest.fixture
    async def backend(self, request):
        backend = MemoryBackend(f"memory://commit-tests/{request.node.name}")
        yield backend
        await backend.delete_prefix("")
