"""Each chunk of an array has one process that writes it, and that process has it."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_checkpointer.arrays import plan
from holdfast_checkpointer.arrays.sharing import Share, Slicing


@dataclass(frozen=True)
class Device:
    number: int
    process_index: int


@dataclass(frozen=True)
class Job:
    """A mesh whose devices are dealt to processes, and an array over it."""

    processes: int
    mesh: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    spec: tuple[tuple[int, ...], ...]

    def placed(self):
        """What each device has; the last shards of an axis may be short or empty."""
        found = {}
        for number, place in enumerate(itertools.product(*map(range, self.mesh))):
            index = []
            for size, axes in zip(self.shape, self.spec, strict=True):
                parts = math.prod(self.mesh[axis] for axis in axes)
                at = 0
                for axis in axes:
                    at = at * self.mesh[axis] + place[axis]
                step = -(-size // parts)
                index.append(slice(min(at * step, size), min((at + 1) * step, size)))
            device = self.order[number]
            found[Device(device, device % self.processes)] = tuple(index)
        return found


@st.composite
def jobs(draw):
    mesh = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
    count = math.prod(mesh)
    processes = draw(st.integers(1, min(count, 6)))
    order = tuple(draw(st.permutations(range(count))))
    rank = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(0, 13)) for _ in range(rank))
    spec = [[] for _ in range(rank)]
    for axis in range(len(mesh)):  # along some axis of the array, or replicated
        where = draw(st.integers(0, rank))
        if where < rank:
            spec[where].append(axis)
    return Job(processes, mesh, order, shape, tuple(map(tuple, spec)))


ANY_SLICE = Slicing(least_bytes=1)


def parts(processes, shape, placed, limit, axes, position, itemsize, slicing=ANY_SLICE, own=None):
    """What each process writes of an array, after `position` others of one chunk."""
    for me in processes:
        share = Share(me, tuple(processes), limit, slicing)
        for _ in range(position):
            share.divided((1,), None, None, itemsize, None, ())
        yield me, share.divided(shape, placed, None, itemsize, own, axes)


def require_each_chunk_once(shape, found):
    chunk = found[0][1].chunk_shape
    assert all(part.chunk_shape == chunk for _, part in found)
    counted = [index for _, part in found for index in part.owned]
    grid = plan.grid(shape, chunk)
    assert sorted(counted) == sorted(itertools.product(*map(range, grid)))
    if 0 in shape:
        assert sum(part.describes for _, part in found) == 1
    else:
        assert not any(part.describes for _, part in found)


@given(
    job=jobs(),
    limit=st.integers(1, 200),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    position=st.integers(0, 9),
    axes=st.lists(st.integers(0, 2), unique=True, max_size=2),
)
def test_the_parts_of_all_processes_are_the_array_and_each_has_what_it_writes(
    job, limit, itemsize, position, axes
):
    placed = job.placed()
    axes = [axis for axis in axes if axis < len(job.shape)]
    found = list(parts(range(job.processes), job.shape, placed, limit, axes, position, itemsize))
    require_each_chunk_once(job.shape, found)
    for me, part in found:
        held = [index for device, index in placed.items() if device.process_index == me]
        assert not part.everywhere
        for number in part.owned:
            bounds = [
                (i * step, min((i + 1) * step, size))
                for i, step, size in zip(number, part.chunk_shape, job.shape, strict=True)
            ]
            assert any(
                all(
                    region.start <= start and stop <= region.stop
                    for (start, stop), region in zip(bounds, regions, strict=True)
                )
                for regions in held
            ), (number, part, held)


@given(
    shape=st.lists(st.integers(0, 20), max_size=3).map(tuple),
    processes=st.sets(st.integers(0, 9), min_size=1, max_size=5).map(sorted),
    limit=st.integers(1, 100),
    position=st.integers(0, 9),
)
def test_what_each_process_has_whole_is_written_once_by_those_that_take_part(
    shape, processes, limit, position
):
    found = list(parts(processes, shape, None, limit, [], position, 4))
    require_each_chunk_once(shape, found)
    assert all(part.everywhere for _, part in found)


@given(
    arrays=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([1, 4]), st.integers(1, 64)), max_size=12
    ),
    processes=st.integers(1, 5),
    least=st.integers(1, 4096),
    limit=st.sampled_from([64, 1000, 1 << 20]),
    own=st.sampled_from([None, 100, 1 << 20]),
    most=st.sampled_from([None, 1, 2, 3]),
)
@settings(deadline=None)  # thousands of chunks, on a machine that may be busy
def test_what_several_hold_is_divided_by_bytes_and_in_no_smaller_slices(
    arrays, processes, least, limit, own, most
):
    written = np.zeros((processes, len(arrays)), int)
    slicing = Slicing(least_bytes=least, most_replicas=most)
    chunks = []
    for me in range(processes):
        share = Share(me, tuple(range(processes)), limit, slicing)
        for number, (rows, itemsize, columns) in enumerate(arrays):
            part = share.divided((rows, columns), None, None, itemsize, own, ())
            chunks.append(math.prod(part.chunk_shape) * itemsize)
            assert chunks[-1] <= max(own or limit, itemsize)
            everything = plan.whole((rows, columns))
            written[me, number] += sum(
                math.prod(plan.extent(box)) * itemsize
                for index, box in plan.chunks_of((rows, columns), part.chunk_shape, everything)
                if index in part.owned
            )
    for number, (rows, itemsize, columns) in enumerate(arrays):
        whole = rows * columns * itemsize
        assert sum(written[:, number]) == whole
        found = [size for size in written[:, number] if size]
        assert len(found) <= (most or processes)
        assert min(found) >= min(least, whole)
    total = written.sum(axis=1)
    if arrays and most is None:
        assert max(total) - min(total) <= max(chunks) + 2 * least


def test_large_arrays_between_small_ones_do_not_all_go_to_one_process():
    written = []
    for me in range(2):
        share = Share(me, (0, 1), 16 << 20)
        sizes = [1 << 20, 8] * 10
        written.append(sum(s for s in sizes if share.divided((s,), None, None, 1, None, ()).owned))
    assert max(written) - min(written) <= 1 << 20


def test_replicas_are_cut_as_the_options_say():
    mib = 1 << 20

    def chunks(size, slicing, count=4, limit=64 * mib, own=None):
        found = dict(parts(range(count), (size,), None, limit, [], 0, 1, slicing, own))
        return found[0].chunk_shape[0], [len(part.owned) for part in found.values()]

    assert chunks(32 * mib, Slicing()) == (8 * mib, [1, 1, 1, 1])
    assert chunks(12 * mib, Slicing()) == (6 * mib, [1, 1, 0, 0])  # a power of two of parts
    assert chunks(12 * mib, Slicing(), 3) == (6 * mib, [1, 1, 0])
    assert chunks(64 * mib, Slicing(), 3) == (8 * mib, [3, 3, 2])
    assert chunks(7 * mib, Slicing()) == (7 * mib, [1, 0, 0, 0])
    assert chunks(32 * mib, Slicing(most_replicas=2)) == (16 * mib, [1, 1, 0, 0])
    assert chunks(32 * mib, Slicing(least_bytes=16 * mib)) == (16 * mib, [1, 1, 0, 0])
    assert chunks(32 * mib, Slicing(enabled=False)) == (32 * mib, [1, 0, 0, 0])
    assert chunks(64 * mib, Slicing(most_replicas=2), limit=16 * mib) == (16 * mib, [2, 2, 0, 0])
    assert chunks(8 * mib, Slicing(), limit=mib) == (mib, [4, 4, 0, 0])  # several are a slice
    assert chunks(32 * mib, Slicing(), own=64 * mib) == (8 * mib, [1, 1, 1, 1])
    assert chunks(32 * mib, Slicing(), own=mib) == (mib, [8, 8, 8, 8])


def test_a_sharded_axis_that_only_cuts_finely_is_left_whole_or_in_slices_of_many_chunks():
    rows = 10007  # a prime: its one divisor makes chunks of a row
    placed = {Device(n, n): (slice(n // 2 * rows, (n // 2 + 1) * rows),) for n in range(4)}
    found = dict(parts(range(4), (2 * rows,), placed, 1 << 20, [], 0, 4, Slicing(least_bytes=400)))
    assert found[0].chunk_shape == (rows,)
    found = dict(parts(range(4), (2 * rows,), placed, 4000, [], 0, 4, Slicing(least_bytes=400)))
    assert found[0].chunk_shape == (1,)
    require_each_chunk_once((2 * rows,), list(found.items()))
    assert all(abs(len(part.owned) - rows // 2) <= 200 for part in found.values())


def test_the_replicas_that_write_a_bounded_number_of_slices_are_those_with_least_to_write():
    owned = []
    for me in range(4):
        share = Share(me, tuple(range(4)), 16, Slicing(least_bytes=1, most_replicas=2))
        owned.append([len(share.divided((64,), None, None, 1, None, ()).owned) for _ in range(3)])
    assert owned == [[2, 0, 2], [2, 0, 2], [0, 2, 0], [0, 2, 0]]


def test_a_replicated_array_is_divided_among_its_replicas_and_arrays_of_one_chunk_take_turns():
    placed = {Device(n, n): (slice(0, 8), slice(0, 4)) for n in range(4)}
    found = dict(parts(range(4), (8, 4), placed, 32, [], 0, 4))
    assert [len(found[me].owned) for me in range(4)] == [1] * 4
    turns = [
        [
            me
            for me, part in parts(range(4), (8, 4), placed, 1 << 20, [], n, 4, Slicing())
            if part.owned
        ]
        for n in range(5)
    ]
    assert turns == [[0], [1], [2], [3], [0]]


def test_a_shard_of_processes_that_take_no_part_is_refused_and_named():
    placed = {Device(n, n): (slice(2 * n, 2 * n + 2),) for n in range(4)}
    with pytest.raises(ValueError, match=r"\[\(4, 6\)\] is only on processes \[2\]"):
        Share(0, (0, 1, 3), 64).divided((8,), placed, None, 4, None, ())
