"""The tiles kernel: what the C interface refuses and needs, and that Python's formulas agree."""

from ctypes import byref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.library.tiles_case import Case, Tiles, arguments_of, needs_of

from secateur_kernels.layouts import Fragment24
from secateur_kernels.sparse24_linear.cuda_tiles_choice import (
    MOST_CANDIDATES,
    candidate_configs,
    default_config,
)
from secateur_kernels.sparse24_linear.cuda_tiles_config import (
    TILES,
    Tile,
    TilesConfig,
    needs,
    occupancy,
    shared_bytes,
    supports,
)

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (57344, 8192), (8192, 28672)]
SHAPES += [(1024, 4096), (152064, 8192), (64, 64), (1, 4), (100, 30000), (70000, 68)]


def check_text(arguments: Tiles, emulator: Any) -> str:
    code = emulator.functions.secateur_sparse24_tiles_check(byref(arguments))
    return str(emulator.text(code))


class Call:
    """Sound arguments for 40 tokens, K split in two, and the memory behind them."""

    def __init__(self) -> None:
        dense = torch.zeros(96, 128, dtype=torch.float16)
        self.weight = Fragment24.from_dense(dense, row_order="gate_up")
        self.x = torch.zeros(40, 128, dtype=torch.float16)
        self.y = torch.zeros(40, 96, dtype=torch.float16)
        self.workspace = torch.zeros(1 << 15)
        self.counters = torch.zeros(64, dtype=torch.int32)
        case = Case(blocks=2, waves=0, gate_up=True)
        self.arguments = arguments_of(case, self.x, self.weight, self.y)
        self.arguments.workspace = self.workspace.data_ptr() + -self.workspace.data_ptr() % 16
        self.arguments.workspace_bytes = 4 * (1 << 15) - 16
        self.arguments.counters = self.counters.data_ptr()
        self.arguments.counter_count = 64


def test_sound_arguments_are_accepted(emulator: Any) -> None:
    assert check_text(Call().arguments, emulator) == "no error"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": 0}, "got a null pointer"),
        ({"weight": 0}, "got a null pointer"),
        ({"y": None}, "got a null pointer"),
        ({"rows": 0}, "at least one row"),
        ({"columns": 126}, "columns divisible by 4"),
        ({"tokens": 0}, "expected 1 to 2**30 tokens"),
        ({"tokens": 2**30 + 1}, "expected 1 to 2**30 tokens"),
        ({"rows": 100}, "rows divisible by 16"),
        ({"gate_up": 0, "silu_and_mul": 1}, "expected row order gate_up for silu_and_mul"),
        ({"value_type": 2}, "expected value type"),
        ({"tile_rows": 64}, "expected tiles of 256 x 128, 128 x 128, 256 x 64 or 128 x 64"),
        ({"tile_tokens": 256}, "expected tiles of"),
        ({"stages": 1}, "expected 2 to 8 stages"),
        ({"stages": 9}, "expected 2 to 8 stages"),
        ({"blocks": 0}, "expected 1 to tiles * ceil(columns / 64) thread blocks"),
        ({"blocks": 3}, "thread blocks"),
        ({"blocks": 2**40}, "thread blocks"),
        ({"waves": -1}, "0 to ceil(tiles / thread blocks) waves"),
        ({"waves": 2}, "0 to ceil(tiles / thread blocks) waves"),
        ({"group": 0}, "groups of at least one row block"),
        ({"tokens": 2**30, "rows": 2**24, "columns": 2**20}, "fewer than 2**31 steps"),
        ({"workspace_bytes": 100}, "the workspace is smaller"),
        ({"workspace": None}, "the workspace is smaller"),
        ({"counter_count": 3}, "fewer counters"),
        ({"counters": None}, "fewer counters"),
        ({"x_stride": -8}, "strides of x and residual"),
        ({"x_stride": 132}, "expected rows of x that start at multiples of 16 bytes"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, int], text: str, emulator: Any) -> None:
    call = Call()
    for name, value in changes.items():
        setattr(call.arguments, name, value)
    assert text in check_text(call.arguments, emulator)


@pytest.mark.parametrize(
    ("name", "offset", "text"),
    [
        ("x", 1, "a pointer is not aligned"),
        ("x", 8, "expected rows of x that start at multiples of 16 bytes"),
        ("weight", 8, "a pointer is not aligned"),
        ("y", 1, "a pointer is not aligned"),
        ("workspace", 4, "a pointer is not aligned"),
        ("counters", 2, "a pointer is not aligned"),
    ],
)
def test_misaligned_pointers_are_refused(name: str, offset: int, text: str, emulator: Any) -> None:
    call = Call()
    setattr(call.arguments, name, getattr(call.arguments, name) + offset)
    assert text in check_text(call.arguments, emulator)


def arguments_for(config: TilesConfig, m: int, n: int, k: int) -> Tiles:
    tiny = Fragment24.from_dense(torch.zeros(64, 64, dtype=torch.bfloat16))
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    case = Case(
        tile=(config.rows, config.tokens),
        stages=config.stages,
        blocks=config.blocks,
        waves=config.waves,
        group=config.group,
    )
    arguments = arguments_of(case, x, tiny, x)
    arguments.tokens, arguments.rows, arguments.columns, arguments.x_stride = m, n, k, k
    return arguments


def check_needs(config: TilesConfig, m: int, n: int, k: int, emulator: Any) -> Any:
    found = needs_of(arguments_for(config, m, n, k), emulator)
    expected = needs(config, m, n, k)
    assert found.workspace_bytes == 4 * expected.workspace_floats
    assert found.counter_count == expected.counters
    assert found.shared_bytes == config.stages * config.tile.stage_bytes
    return found


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)], ids=str)
@pytest.mark.parametrize("m", [1, 64, 257, 65536])
def test_defaults_and_candidates_are_accepted(
    m: int, capability: tuple[int, int], emulator: Any
) -> None:
    num_sms = {(8, 0): 108, (8, 9): 128, (9, 0): 132}[capability]
    for shape in SHAPES:
        config = default_config(m, *shape, num_sms, capability)
        candidates = candidate_configs(m, *shape, num_sms, capability)
        assert candidates[0] == config
        assert len(set(candidates)) == len(candidates) <= MOST_CANDIDATES
        for candidate in candidates:
            found = check_needs(candidate, m, *shape, emulator)
            assert found.shared_bytes <= shared_bytes(capability)
        # Partial sums stay small beside what a GPU has.
        assert needs(config, m, *shape).workspace_floats < 2**25


def test_large_tiles_where_arithmetic_decides() -> None:
    for capability, num_sms in (((8, 0), 108), ((8, 9), 128), ((9, 0), 132)):
        config = default_config(4096, 28672, 4096, num_sms, capability)
        assert (config.rows, config.tokens, config.blocks) == (256, 128, num_sms)
        assert config.waves > 20
    # Few tiles: K is split until every multiprocessor has work.
    assert default_config(64, 4096, 14336, 108, (8, 0)).blocks >= 2 * 108


def test_shared_memory_of_each_gpu() -> None:
    large, square = TILES[0], TILES[1]
    assert occupancy(large, (8, 0)) == (1, 4)
    assert occupancy(large, (8, 6)) == occupancy(large, (8, 9)) == (1, 2)
    assert occupancy(large, (9, 0)) == (1, 6)
    assert occupancy(square, (8, 0)) == (2, 3)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_needs_are_those_of_the_library(data: st.DataObject, emulator: Any) -> None:
    m, n = data.draw(st.integers(1, 5000)), data.draw(st.integers(1, 20000))
    k = 4 * data.draw(st.integers(1, 3000))
    tile: Tile = data.draw(st.sampled_from(TILES))
    tiles = -(-n // tile.rows) * -(-m // tile.tokens)
    blocks = data.draw(st.integers(1, min(tiles * -(-k // 64), 500)))
    config = TilesConfig(
        rows=tile.rows,
        tokens=tile.tokens,
        stages=data.draw(st.integers(2, 8)),
        blocks=blocks,
        waves=data.draw(st.integers(0, -(-tiles // blocks))),
        group=data.draw(st.integers(1, 20)),
    )
    check_needs(config, m, n, k, emulator)


def test_what_is_supported() -> None:
    assert supports(1, 64, 64, (8, 0))
    assert supports(65536, 152064, 8192, (9, 0))
    assert not supports(0, 64, 64, (9, 0))
    assert not supports(64, 64, 64, (7, 5))
    assert not supports(2**30, 2**24, 2**20, (9, 0))
