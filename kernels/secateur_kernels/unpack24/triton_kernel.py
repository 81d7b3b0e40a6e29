"""Fragment order to a dense weight in one pass: the Triton kernel and its launch.

The way back of `pack24`, in the same tiles of 16 x 256 and for the same reasons: 1152 contiguous
bytes a sub-tile come in, 16 a lane; pairs of kept values change places through shared memory, 4
bytes a group; and a group leaves as one 64-bit word, a warp writing a row of 512 contiguous bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from secateur_kernels.layouts.fragment24 import SUB_TILE_BYTES, UNIT_BYTES
from secateur_kernels.testing.compile_case import CompileCase

_UNIT_WORDS = tl.constexpr(UNIT_BYTES // 4)
_SUB_TILE_WORDS = tl.constexpr(SUB_TILE_BYTES // 4)
_ROWS = 16
_COLUMNS = 256
_NUM_WARPS = 4


@triton.jit
def _load_pairs(
    first: tl.tensor, inside: tl.tensor, ROWS: tl.constexpr, GROUPS: tl.constexpr
) -> tl.tensor:
    """Pairs of kept values [ROWS, GROUPS] in plain order."""
    SUB_TILES: tl.constexpr = ROWS // 16
    FRAGMENTS: tl.constexpr = GROUPS // 8
    index = tl.arange(0, SUB_TILES * FRAGMENTS)
    fragment = index % FRAGMENTS
    start = index // FRAGMENTS * _SUB_TILE_WORDS + fragment // 2 * _UNIT_WORDS + fragment % 2 * 128
    lanes = tl.load(
        first + start[:, None] + tl.arange(0, 128)[None, :],
        mask=(fragment // 2 < inside)[:, None],
        other=0,
    )
    # a fragment's lanes (q, t) and registers -> sub-tile, row half, q, fragment, column half, t
    split = tl.reshape(lanes, (SUB_TILES, FRAGMENTS, 8, 4, 2, 2))
    return tl.reshape(tl.permute(split, (0, 5, 2, 1, 4, 3)), (ROWS, GROUPS))


@triton.jit
def _load_nibbles(
    first: tl.tensor, inside: tl.tensor, ROWS: tl.constexpr, GROUPS: tl.constexpr
) -> tl.tensor:
    """Index pairs [ROWS, GROUPS] in plain order."""
    SUB_TILES: tl.constexpr = ROWS // 16
    row = tl.arange(0, SUB_TILES * 8)
    half = tl.arange(0, GROUPS // 4)
    place = row // 8 * _SUB_TILE_WORDS + 256 + row % 8 * 4
    words = tl.load(
        first + place[:, None] + (half // 4 * _UNIT_WORDS + half % 4)[None, :],
        mask=(half // 4 < inside)[None, :],
        other=0,
    )
    # Each word serves rows q and q + 8 and four groups.
    spread = tl.reshape(words, (SUB_TILES, 1, 8, GROUPS // 4, 1))
    spread = tl.broadcast_to(spread, (SUB_TILES, 2, 8, GROUPS // 4, 4))
    shifts = 16 * (tl.arange(0, ROWS) // 8 % 2)[:, None] + 4 * (tl.arange(0, GROUPS) % 4)[None, :]
    return (tl.reshape(spread, (ROWS, GROUPS)) >> shifts) & 15


@triton.jit
def unpack24_kernel(
    data: tl.tensor,
    dense: tl.tensor,
    rows: tl.tensor,
    groups: tl.tensor,
    steps: tl.tensor,
    tiles: tl.tensor,
    GATE_UP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """One tile [ROWS, 4 * GROUPS].

    Args:
        data: int32 words of fragment order.
        dense: int64 words [N, K / 4] of four 16-bit weights, written.
        rows: N.
        groups: K / 4.
        steps: of 64 columns, rounded up.
        tiles: in a row of tiles.
        GATE_UP: whether the row order is gate_up.
        ROWS: of a tile, 16, 32 or 64.
        GROUPS: of a tile, a power of two from 16 on.
    """
    tile_row = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    panel = data + (tile_row * ROWS // 64).to(tl.int64) * steps * _UNIT_WORDS
    first = panel + tile * (GROUPS // 16) * _UNIT_WORDS
    first += tile_row * (ROWS // 16) % 4 * _SUB_TILE_WORDS
    inside = steps - tile * (GROUPS // 16)
    pairs = _load_pairs(first, inside, ROWS, GROUPS)
    nibbles = _load_nibbles(first, inside, ROWS, GROUPS)

    lower = (pairs & 65535).to(tl.int64) << ((nibbles & 3) * 16).to(tl.int64)
    higher = ((pairs >> 16) & 65535).to(tl.int64) << ((nibbles >> 2) * 16).to(tl.int64)
    packed_row = tile_row * ROWS + tl.arange(0, ROWS)
    row = packed_row
    if GATE_UP:
        row = packed_row // 8 % 2 * (rows // 2) + packed_row // 16 * 8 + packed_row % 8
    group = tile * GROUPS + tl.arange(0, GROUPS)
    tl.store(
        dense + row.to(tl.int64)[:, None] * groups + group[None, :],
        lower | higher,
        mask=(packed_row < rows)[:, None] & (group < groups)[None, :],
    )


def launch(
    data: Tensor, rows: int, columns: int, gate_up: bool, value_dtype: torch.dtype
) -> Tensor:
    """The weight [rows, columns] of checked bytes, rows and columns not zero."""
    dense = data.new_empty((rows, columns), dtype=value_dtype)
    tiles = triton.cdiv(columns, _COLUMNS)
    with torch.cuda.device_of(data):
        unpack24_kernel[(tiles * triton.cdiv(rows, _ROWS),)](
            data.view(torch.int32),
            dense.view(torch.int64),
            rows,
            columns // 4,
            data.shape[1],
            tiles,
            GATE_UP=gate_up,
            ROWS=_ROWS,
            GROUPS=_COLUMNS // 4,
            num_warps=_NUM_WARPS,
        )
    return dense


def ahead_of_time_cases() -> list[CompileCase]:
    """Both row orders, one with K that is no multiple of 64. The kernel does not see the dtype."""
    sizes = dict.fromkeys(("rows", "groups", "steps", "tiles"), "i32")
    switches = ("GATE_UP", "ROWS", "GROUPS")
    signature = {"data": "*i32", "dense": "*i64", **sizes, **dict.fromkeys(switches, "constexpr")}
    return [
        CompileCase(
            name=f"unpack24{', gate_up' * gate_up}{', unaligned' * (not aligned)}",
            kernel=unpack24_kernel,
            signature=signature,
            constexprs={"GATE_UP": gate_up, "ROWS": _ROWS, "GROUPS": _COLUMNS // 4},
            divisible_by_16=("data", "dense", *(["groups"] if aligned else [])),
            num_warps=_NUM_WARPS,
        )
        for gate_up, aligned in ((False, True), (True, False))
    ]
