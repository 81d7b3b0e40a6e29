"""How the compiled 2:4 kernel divides its work: the config, its default, and what is worth timing.

A thread block owns `warps * row_tiles * 16` rows and walks along K in steps of 64 columns. The
pairs (row block, step) are divided into `blocks` contiguous ranges of equal length; a row block
that several ranges share is summed through a workspace in fixed order. The formulas are those of
`csrc/include/secateur/schedule.h` and `skinny/problem.h`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_TOKENS = 64
_TILE_ROWS = 16
_UNIT = 64
_UNIT_BYTES = 4608
_LANES = 32
_MAX_STAGES = 16

# What a thread block may have on every GPU from sm_80 on (99 KiB on sm_86 and sm_89); two of them
# share a multiprocessor of an H100.
SHARED_BYTES = 99 * 1024


@dataclass(frozen=True)
class Sparse24CudaConfig:
    """One way to run the kernel; the library checks it."""

    warps: int
    """That multiply: 1 to 8, or to 4 for 4 row tiles and more than 32 tokens."""
    row_tiles: int
    """Of 16 rows, a warp: 2 or 4. `warps * row_tiles` is a multiple of 4."""
    stages: int
    """Steps of 64 columns in flight: 2 to 16, as shared memory allows."""
    blocks: int
    """Thread blocks: 1 to the number of pairs (row block, step)."""

    @property
    def block_rows(self) -> int:
        """Rows of the weight that a thread block owns."""
        return self.warps * self.row_tiles * _TILE_ROWS


def supports(m: int, capability: tuple[int, int]) -> bool:
    """Whether the kernel takes m tokens on a device of this compute capability."""
    return 1 <= m <= MAX_TOKENS and capability >= (8, 0)


def token_tiles(m: int) -> int:
    """Groups of eight tokens that are computed: 1, 2, 4 or 8."""
    return next(tiles for tiles in (1, 2, 4, 8) if m <= 8 * tiles)


def stage_bytes(block_rows: int, m: int) -> int:
    """Shared memory of a stage: weights, x, and two barriers."""
    return block_rows // _UNIT * _UNIT_BYTES + token_tiles(m) * 8 * 2 * _UNIT + 16


@dataclass(frozen=True)
class Needs:
    """What a call must bring along."""

    workspace_floats: int
    counters: int


def needs(config: Sparse24CudaConfig, m: int, n: int, k: int) -> Needs:
    """Workspace (float32) and counters (int32, zero) for x [m, k] and a weight [n, k]."""
    row_blocks, _ = _grid(config.block_rows, n, k)
    if row_blocks % config.blocks == 0:
        return Needs(0, 0)
    slots = config.blocks * (1 if config.blocks % row_blocks == 0 else 2)
    return Needs(slots * _slot_floats(config.block_rows, m), row_blocks * config.warps)


def default_config(
    m: int, n: int, k: int, num_sms: int, shared_bytes: int = SHARED_BYTES
) -> Sparse24CudaConfig:
    """A good guess for 1 to 64 tokens: the least to move for the busiest multiprocessor.

    Args:
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        shared_bytes: shared memory that a thread block may use.
    """

    def cost(option: tuple[int, int]) -> tuple[int, int]:
        block_rows, blocks = option
        return _bytes_of_the_busiest(block_rows, blocks, m, n, k), -block_rows

    options = [
        (block_rows, blocks)
        for block_rows in (256, 192, 128, 64)
        if block_rows < n + _UNIT
        for blocks in _block_counts(block_rows, n, k, num_sms)
    ]
    block_rows, blocks = min(options, key=cost)
    return _config(block_rows, 2, blocks, m, shared_bytes)


def candidate_configs(
    m: int, n: int, k: int, num_sms: int = 0, shared_bytes: int = SHARED_BYTES
) -> list[Sparse24CudaConfig]:
    """What is worth timing for a shape; the first is the default where `num_sms` is known.

    Args:
        m: tokens, 1 to 64.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device; 0 leaves out what depends on it.
        shared_bytes: shared memory that a thread block may use.
    """
    found: dict[Sparse24CudaConfig, None] = {}
    if num_sms:
        found[default_config(m, n, k, num_sms, shared_bytes)] = None
    for block_rows in (64, 128, 192, 256):
        if block_rows >= n + _UNIT:
            continue
        for blocks in _blocks_to_time(block_rows, n, k, num_sms):
            for row_tiles in (2, 4):
                found[_config(block_rows, row_tiles, blocks, m, shared_bytes)] = None
    return list(found)


def _config(
    block_rows: int, row_tiles: int, blocks: int, m: int, shared_bytes: int
) -> Sparse24CudaConfig:
    stages = min(_MAX_STAGES, shared_bytes // stage_bytes(block_rows, m))
    return Sparse24CudaConfig(block_rows // (_TILE_ROWS * row_tiles), row_tiles, stages, blocks)


def _grid(block_rows: int, n: int, k: int) -> tuple[int, int]:
    """Row blocks, and steps of 64 columns."""
    panels = -(-n // _UNIT)
    return -(-panels // (block_rows // _UNIT)), -(-k // _UNIT)


def _slot_floats(block_rows: int, m: int) -> int:
    return block_rows * token_tiles(m) * 8


def _block_counts(block_rows: int, n: int, k: int, num_sms: int) -> Iterator[int]:
    """One wave: K split into whole parts, then equal ranges over all multiprocessors."""
    row_blocks, steps = _grid(block_rows, n, k)
    if row_blocks <= num_sms:
        yield row_blocks * min(steps, num_sms // row_blocks)
    yield min(row_blocks * steps, num_sms)


def _blocks_to_time(block_rows: int, n: int, k: int, num_sms: int) -> list[int]:
    """Whole splits of K; with the number of multiprocessors one wave, two, and splits between."""
    row_blocks, steps = _grid(block_rows, n, k)
    if not num_sms:
        counts = [row_blocks * split for split in (1, 2, 4, 8, 16) if split <= steps]
    else:
        counts = [*_block_counts(block_rows, n, k, num_sms)]
        counts += _block_counts(block_rows, n, k, 2 * num_sms)
        counts += [row_blocks] if row_blocks <= num_sms else []
    # The kernel divides in 32 bits.
    most = (2**31 - 1) // (row_blocks * steps + 1)
    return [count for count in dict.fromkeys(counts) if count <= most]


def _bytes_of_the_busiest(block_rows: int, blocks: int, m: int, n: int, k: int) -> int:
    """What the busiest thread block moves: its stages, and partial sums there and back."""
    row_blocks, steps = _grid(block_rows, n, k)
    whole_splits = blocks % row_blocks == 0
    parts = blocks // row_blocks if whole_splits else blocks
    longest = -(-(steps if whole_splits else row_blocks * steps) // parts)
    moved = longest * stage_bytes(block_rows, m)
    if row_blocks % blocks == 0:
        return moved
    partial_sums = (1 if whole_splits else 2) * 4 * _slot_floats(block_rows, m)
    return moved + 2 * partial_sums
