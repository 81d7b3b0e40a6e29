"""Counters: nobody shares them who may run at the same time."""

import itertools
import threading
from dataclasses import dataclass, field

import pytest
import torch

from secateur_kernels.errors import SecateurError
from secateur_kernels.sparse24_linear.tickets import COUNTERS, TicketPool

LANE = 4 * COUNTERS


@dataclass
class Memory:
    """Hands out addresses, and remembers how much was asked for."""

    asked: list[tuple[int, int]] = field(default_factory=list)
    room: int = 1000
    """How often it can be asked before it is full."""

    def allocate(self, device: int, num_bytes: int) -> int:
        self.asked.append((device, num_bytes))
        if len(self.asked) > self.room:
            raise SecateurError("out of memory")
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


def test_the_stream_of_each_thread_has_its_own_though_all_have_one_handle() -> None:
    tickets = pool(Memory(), lanes=4)
    per_thread, addresses = 2, []

    def take() -> None:
        addresses.append({tickets.take(1, per_thread, 0).address for _ in range(2)})

    take()
    other = threading.Thread(target=take)
    other.start()
    other.join()
    take()
    assert [len(own) for own in addresses] == [1, 1, 1]
    assert addresses[0] == addresses[2] != addresses[1]


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


def test_every_block_of_a_large_model_gets_a_graph_with_a_lane() -> None:
    """As vLLM captures: for each number of tokens a run without graphs, then one a block."""
    tickets = TicketPool(torch.device("cpu"), Memory().allocate)
    blocks = 126
    for capture in range(1, 10 * blocks, blocks):
        tickets.take(8, stream=1, capture=0)
        lanes = [tickets.take(8, stream=1, capture=capture + block) for block in range(blocks)]
        assert all(counters.owner is None for counters in lanes)


def test_a_call_that_has_counters_needs_no_more_memory() -> None:
    """Weights and caches may fill a GPU: a reserve that cannot be had must not stop them."""
    memory = Memory(room=1)
    tickets = pool(memory, lanes=8)
    first = tickets.take(8, stream=1, capture=0)
    for capture in range(1, 8):
        assert tickets.take(8, stream=2, capture=capture).owner is None
    for _ in range(3):
        assert tickets.take(8, stream=1, capture=0) == first
    assert len(memory.asked) == 2  # not at every call
    with pytest.raises(SecateurError, match="out of memory"):
        tickets.take(8, stream=3, capture=0)
    memory.room = 10
    assert tickets.take(8, stream=3, capture=0).owner is None
    assert len(memory.asked) == 4


def test_more_than_a_lane_is_for_one_call() -> None:
    many = pool(Memory()).take(COUNTERS + 1, stream=1, capture=0)
    assert many.owner is not None
    assert many.count == len(many.owner) == COUNTERS + 1
    assert not many.owner.any()
