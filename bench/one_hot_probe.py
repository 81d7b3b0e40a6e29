"""Whether the sparse matrix instructions of this GPU read packed units as `fragment24.py` says.

    python -m bench.one_hot_probe

The first thing to run on a GPU: mma.sp and wgmma.sp on tokens that are one at one column each, so
that every sum is one weight as the hardware sees it. Where it differs, the output names the lane,
register and half of the value, or the lane and bits of the metadata word, and what became of them.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench import gpu_programs
from secateur_kernels.layouts import Fragment24
from secateur_kernels.layouts.fragment24 import SUB_TILE_BYTES, UNIT, UNIT_BYTES, VALUE_BYTES
from secateur_kernels.layouts.kind import kind_of

INSTRUCTIONS = ("mma.sp m16n8k32", "wgmma.sp m64n32k32")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BITS_OF_ONE = {"bf16": 0x3F80, "fp16": 0x3C00}
_LANES, _NIBBLES, _SUB_TILES = 32, 8, 4
_LAST_PAIR = 0b1110  # columns 2 and 3
_MOST_LINES = 16
# Units (uint8 [count, 4608]) and the value type to sums [count, 2, 8, 128, 4].
Hardware = Callable[[Tensor, str], Tensor]


@dataclass(frozen=True)
class Finding:
    """What one instruction does with one value type."""

    instruction: str
    dtype: str
    differences: tuple[str, ...]
    """Empty where it does what the layout says."""


def distinct_unit(seed: int, dtype: str) -> tuple[Tensor, Tensor]:
    """A unit, uint8 [4608], with 2048 different values at random pairs; and its weight [64, 64]."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(4), 2)
    chosen = pairs[torch.randint(6, (UNIT, UNIT // 4), generator=generator)]
    if seed == 0:
        chosen = torch.zeros_like(chosen) + torch.tensor([0, 1])
    columns = (chosen + 4 * torch.arange(UNIT // 4)[:, None]).view(UNIT, UNIT // 2)
    bits = _BITS_OF_ONE[dtype] + torch.arange(UNIT * UNIT // 2, dtype=torch.int32)
    values = bits.to(torch.int16).view(DTYPES[dtype]).view(UNIT, UNIT // 2)
    weight = torch.zeros(UNIT, UNIT, dtype=DTYPES[dtype]).scatter_(1, columns, values)
    return Fragment24.from_dense(weight).data.view(UNIT_BYTES), weight


def with_moved_pairs(unit: Tensor) -> Tensor:
    """Copies of a unit whose pairs are all (0, 1), but for one nibble of one lane's word in every
    sub-tile: (2, 3). uint8 [lane * 8 + nibble, 4608]."""
    units = unit.repeat(_LANES * _NIBBLES, 1)
    words = units.view(_LANES, _NIBBLES, _SUB_TILES, SUB_TILE_BYTES)[..., VALUE_BYTES:]
    for lane in range(_LANES):
        for nibble in range(_NIBBLES):
            shift = 4 * (nibble % 2)
            byte = words[lane, nibble, :, 4 * lane + nibble // 2]
            byte &= 0xFF ^ (15 << shift)
            byte |= _LAST_PAIR << shift
    return units


def weights_of(units: Tensor, dtype: str) -> Tensor:
    """What the layout says that units are: [count, 64, 64]."""
    count = len(units)
    data = units.view(1, count, UNIT_BYTES).contiguous()
    dense = Fragment24(data, (UNIT, UNIT * count), kind_of(DTYPES[dtype])).to_dense()
    return dense.view(UNIT, count, UNIT).transpose(0, 1)


def weights_seen(sums: Tensor) -> Tensor:
    """Sums [count, 8, 128, 4] of one instruction as weights [count, 64, 64].

    Thread 32 * w + 4 * q + t holds rows q (sums 0, 1) and q + 8 of warp w's sixteen, at tokens
    2 * t and 2 * t + 1; token j of block b is column 8 * b + j.
    """
    count = len(sums)
    # unit, block, warp, q, t, row half, token
    spread = sums.view(count, UNIT // 8, _SUB_TILES, 8, 4, 2, 2)
    return spread.permute(0, 2, 5, 3, 1, 4, 6).reshape(count, UNIT, UNIT)


def find(hardware: Hardware, dtype: str) -> list[Finding]:
    """Ask the hardware and compare, one finding an instruction."""
    asked = [distinct_unit(seed, dtype) for seed in range(8)]
    plain = torch.stack([unit for unit, _ in asked])
    moved = with_moved_pairs(plain[0])
    sums = hardware(torch.cat([plain, moved]), dtype)
    findings = []
    for index, instruction in enumerate(INSTRUCTIONS):
        seen = weights_seen(sums[:, index])
        expected = torch.stack([weight for _, weight in asked]).float()
        differences = value_differences(seen[0], expected[0])
        differences += metadata_differences(seen[0], seen[len(asked) :])
        for seed in range(len(asked)):
            wrong = seen[seed] != expected[seed]
            if wrong.any() and not differences:
                row, column = wrong.nonzero()[0].tolist()
                differences.append(
                    f"unit {seed}: {int(wrong.sum())} of 4096 weights differ, first "
                    f"row {row} column {column}: expected {expected[seed, row, column]:g}, "
                    f"got {seen[seed, row, column]:g}"
                )
        findings.append(Finding(instruction, dtype, tuple(differences)))
    return findings


def value_differences(seen: Tensor, expected: Tensor) -> list[str]:
    """Values of a unit whose pairs are all (0, 1) that are not where the layout says."""
    lines = []
    for row, column in (seen != expected).nonzero().tolist():
        value = float(expected[row, column])
        if value == 0:
            continue  # told at the place where the value should be
        places = (seen == value).nonzero().tolist()
        where = ", ".join(f"row {r} column {c}" for r, c in places) or "nowhere"
        lines.append(
            f"{_register_of(row, column)}: expected at row {row} column {column}, seen {where}"
        )
    return lines


def _register_of(row: int, column: int) -> str:
    """Where a lane has a value of a unit whose pairs are all (0, 1)."""
    fragment, half, group = column // 32, column % 32 // 16, column % 16 // 4
    # Kept columns 2 * group and 2 * group + 1 of the half's eight: both of lane t = group.
    lane, register = 4 * (row % 8) + group, row % 16 // 8 + 2 * half
    part = "high half" if column % 2 else "low half"
    return f"warp {row // 16} fragment {fragment} lane {lane} register {register} {part}"


def metadata_differences(base: Tensor, moved: Tensor) -> list[str]:
    """Nibbles of metadata words that do not rule the group that the layout says.

    Args:
        base: weight [64, 64] seen with all pairs (0, 1).
        moved: the same with one nibble (2, 3), [lane * 8 + nibble, 64, 64].
    """
    lines = []
    groups = (moved != base).view(_LANES, _NIBBLES, _SUB_TILES, 16, UNIT // 4, 4).any(-1)
    for lane in range(_LANES):
        for nibble in range(_NIBBLES):
            q, fragment, half = lane // 4, lane % 4 // 2, lane % 2
            expected = [q + 8 * (nibble // 4), 8 * fragment + 4 * half + nibble % 4]
            for warp in range(_SUB_TILES):
                found = groups[lane, nibble, warp].nonzero().tolist()
                if found != [expected]:
                    bits = f"{4 * nibble}-{4 * nibble + 3}"
                    lines.append(
                        f"warp {warp} metadata of lane {lane} bits {bits}: expected to rule "
                        f"{_group(expected)}, rules {' and '.join(map(_group, found)) or 'nothing'}"
                    )
    return lines


def _group(place: Sequence[int]) -> str:
    row, group = place
    return f"row {row} columns {4 * group}-{4 * group + 3} (selector {group // 8})"


def on_this_gpu(units: Tensor, dtype: str) -> Tensor:
    """Run the probe's program."""
    program = gpu_programs.build("one_hot_probe")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "units", Path(folder) / "sums"
        source.write_bytes(units.contiguous().numpy().tobytes())
        gpu_programs.run(program, dtype, str(source), str(target), timeout=20)
        sums = torch.frombuffer(bytearray(target.read_bytes()), dtype=torch.float32)
    return sums.view(len(units), len(INSTRUCTIONS), UNIT // 8, 128, 4)


def report(findings: Sequence[Finding]) -> list[str]:
    """Lines to print."""
    lines = []
    for finding in findings:
        count = len(finding.differences)
        verdict = f"{count} differences" if count else "as fragment24.py says"
        lines.append(f"{finding.instruction} {finding.dtype}: {verdict}")
        lines += [f"  {text}" for text in finding.differences[:_MOST_LINES]]
        if count > _MOST_LINES:
            lines.append(f"  and {count - _MOST_LINES} more")
    return lines


def main(arguments: Sequence[str] | None = None, hardware: Hardware = on_this_gpu) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.one_hot_probe")
    parser.parse_args(arguments)
    try:
        findings = [found for dtype in DTYPES for found in find(hardware, dtype)]
    except RuntimeError as error:
        print(f"the probe did not run: {error}")
        return 2
    print("\n".join(report(findings)))
    return 1 if any(found.differences for found in findings) else 0


if __name__ == "__main__":
    raise SystemExit(main())
