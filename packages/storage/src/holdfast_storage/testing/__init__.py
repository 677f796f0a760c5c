"""Conformance kit: what a backend or a commit strategy must show.

For your own backend, subclass `StorageBackendTests` and `CommitTests` in a test file and
provide the fixture `backend`; see `holdfast_storage/memory.py` for the smallest one.
"""

from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash

__all__ = ["Fault", "FaultyBackend", "SimulatedCrash"]
