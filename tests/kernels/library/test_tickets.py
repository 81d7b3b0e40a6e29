"""Counters: nobody shares them who may run at the same time."""

import itertools
from dataclasses import dataclass, field

import torch

from secateur_kernels.sparse24_linear.tickets import COUNTERS, TicketPool

LANE = 4 * COUNTERS


@dataclass
class Memory:
    """Hands out addresses, and remembers how much was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def allocate(self, device: int, num_bytes: int) -> int:
        self.asked.append((device, num_bytes))
        return 1 << (20 + 4 * len(self.asked))


def pool(memory: Memory, lanes: int = 2) -> TicketPool:
    return TicketPool(torch.device("cpu"), memory.allocate, lanes)


def test_a_stream_keeps_its_counters() -> None:
    memory = Memory()
    tickets = pool(memory)
    first = tickets.take(10, stream=1, capture=0)
    assert first.count == COUNTERS
    assert tickets.take(COUNTERS, stream=1, capture=0) == first
    assert memory.asked == [(0, 2 * LANE)]


def test_streams_and_captures_do_not_share() -> None:
    tickets = pool(Memory(), lanes=4)
    calls = [(1, 0), (2, 0), (1, 7), (1, 8)]
    taken = sorted(tickets.take(1, stream, capture).address for stream, capture in calls)
    assert all(after - before == LANE for before, after in itertools.pairwise(taken))


def test_the_pool_grows_outside_of_captures_only() -> None:
    memory = Memory()
    tickets = pool(memory, lanes=1)
    # Nothing there yet, and nothing may be allocated for good: counters for this call alone.
    alone = tickets.take(5, stream=1, capture=3)
    assert alone.owner is not None
    assert alone.owner.tolist() == [0] * 5
    assert alone.address == alone.owner.data_ptr()
    assert memory.asked == []
    kept = [tickets.take(5, stream, capture=0) for stream in range(5)]
    assert len({counters.address for counters in kept}) == 5
    assert len(memory.asked) == 5
    assert tickets.take(5, stream=9, capture=4).owner is not None
    assert len(memory.asked) == 5


def test_graph_after_graph_gets_a_lane_of_its_own() -> None:
    """As benchmarks capture: a few eager calls on one stream, then several graphs, a hundred times.
    Counters that are filled at each replay would be another node of the graph, and be timed."""
    memory = Memory()
    tickets = pool(memory, lanes=64)
    seen = set()
    for turn in range(100):
        tickets.take(8, stream=1, capture=0)
        for graph in range(10):
            counters = tickets.take(8, stream=2, capture=1 + 10 * turn + graph)
            assert counters.owner is None
            seen.add(counters.address)
    assert len(seen) == 1000
    assert len(memory.asked) <= 1001 // 64 + 2


def test_more_than_a_lane_is_for_one_call() -> None:
    many = pool(Memory()).take(COUNTERS + 1, stream=1, capture=0)
    assert many.owner is not None
    assert many.count == len(many.owner) == COUNTERS + 1
    assert not many.owner.any()
