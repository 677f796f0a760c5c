import pytest

from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.tables import TableBackend
from holdfast_storage.testing.trash_tests import TrashTests


class TestPointer(TrashTests):
    @pytest.fixture
    def backend(self):
        return TableBackend()


class TestRenameWithExchange(TrashTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True, exchange=True)


class TestRenameWithoutExchange(TrashTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True)


class TestDecidedRename(TrashTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(decided=True)


class TestMemory(TrashTests):
    @pytest.fixture
    async def backend(self, request):
        backend = MemoryBackend(f"memory://trash-tests/{request.node.name}")
        yield backend
        await backend.delete_prefix("")
