import pytest

from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.commit_tests import CommitTests, ThoroughCommitTests
from holdfast_storage.testing.tables import TableBackend


class TestPointer(ThoroughCommitTests):
    @pytest.fixture
    def backend(self):
        return TableBackend()


class TestRenameWithExchange(ThoroughCommitTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True, exchange=True)


class TestRenameWithoutExchange(ThoroughCommitTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True)


class TestDecidedRename(ThoroughCommitTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(decided=True)


class TestMemory(CommitTests):
    @pytest.fixture
    async def backend(self, request):
        backend = MemoryBackend(f"memory://commit-tests/{request.node.name}")
        yield backend
        await backend.delete_prefix("")
