import pytest

from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.tables import TableBackend
from holdfast_storage.testing.trash_tests import TrashFaultTests


class TestPointer(TrashFaultTests):
    @pytest.fixture
    def backend(self):
        return TableBackend()


class TestRenameWithExchange(TrashFaultTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True, exchange=True)


class TestRenameWithoutExchange(TrashFaultTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(rename=True)


class TestDecidedRename(TrashFaultTests):
    @pytest.fixture
    def backend(self):
        return TableBackend(decided=True)


class TestMemory(TrashFaultTests):
    @pytest.fixture
    async def backend(self, request):
        backend = MemoryBackend(f"memory://trash-tests/{request.node.name}")
        yield backend
        await backend.delete_prefix("")
