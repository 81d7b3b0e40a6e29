"""What ptxas made of the asynchronous products of warpgroups: no register is written under one.

A product reads its sparse operand and metadata from registers, and goes on reading them after the
instruction was issued. ptxas is known to take the metadata's register for something else too early.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import triton

from secateur_kernels.library import NAME

# Sums, values and metadata. Sums that are zero are not read.
PRODUCT = re.compile(
    r"HGMMA\.SP\S* R(\d+), R(\d+), gdesc\[UR\d+\], (?:R\d+|RZ), (?:!?UP\w+, )?R(\d+), 0x"
)
PANELS = re.compile(r"ShapeILi\d+ELi(\d+)E")
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)")
LOAD = re.compile(r"LD[SGLC]\S*?(?:\.(64|128))?(?:\.\w+)* R(\d+), ")
JUMP = re.compile(r"BRA (?:\S+, )?0x([0-9a-f]+)")


def cuobjdump() -> str | None:
    """On the path, or the one that comes with Triton."""
    beside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(beside))


def kernels(sass: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Name and instructions, with addresses, of every kernel that has such products."""
    for part in sass.split("Function : ")[1:]:
        name = part.split("\n", 1)[0]
        lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", part)
        if any("HGMMA.SP" in text for _, text in lines):
            yield name, [(int(address, 16), text) for address, text in lines]


class Products(NamedTuple):
    """The instructions of a kernel from its first product on."""

    before: list[str]
    loop: list[str]
    """The innermost loop that holds products."""
    behind: list[str]
    """Up to the wait for all of them."""


def products_of(lines: list[tuple[int, str]]) -> Products:
    products = [address for address, text in lines if "HGMMA.SP" in text]
    jumps = [(address, JUMP.search(text)) for address, text in lines]
    loops = [(int(jump[1], 16), address) for address, jump in jumps if jump]
    around = [(start, end) for start, end in loops if start <= products[-1] <= end]
    assert around, "no loop around products"
    start, end = min(around, key=lambda loop: loop[1] - loop[0])
    waits = [at for at, text in lines if at > end and "DEPBAR.LE gsb0, 0x0" in text]
    assert waits, "no wait for all products"
    return Products(
        [text for at, text in lines if products[0] <= at < start],
        [text for at, text in lines if start <= at <= end],
        [text for at, text in lines if end < at <= waits[0]],
    )


def written(text: str) -> set[int]:
    """General registers that an ordinary instruction writes, the first operand being the target."""
    body = re.sub(r"^@!?U?P\w+\s+", "", text.strip())
    load = LOAD.match(body)
    if load:
        count = {"64": 2, "128": 4}.get(load[1] or "", 1)
        return set(range(int(load[2]), int(load[2]) + count))
    if body.startswith(("ST", "HGMMA", "WARPGROUP", "SYNCS", "BRA", "ISETP", "R2UR", "RED", "U")):
        return set()
    target = re.match(r"(\S+) (?:P\w+, )?R(\d+)(?:,|\s|$)", body)
    if not target:
        return set()
    wide = ".WIDE" in target[1] or target[1].startswith("CS2R")
    return {int(target[2]), int(target[2]) + 1} if wide else {int(target[2])}


def hazards(instructions: list[str]) -> list[str]:
    """Writes to registers that a product still reads or sums into."""
    groups: list[set[int]] = []
    found = []
    current: set[int] = set()
    for text in instructions:
        product, wait = PRODUCT.search(text), WAIT.search(text)
        if product:
            tokens = re.search(r"64x(\d+)x32", text)
            assert tokens is not None
            sums, values, metadata = (int(number) for number in product.groups())
            current |= set(range(sums, sums + int(tokens[1]) // 2))
            current |= {*range(values, values + 4), metadata}
            if "gsb0" in text:
                groups.append(current)
                current = set()
        elif wait:
            groups = groups[len(groups) - min(int(wait[1]), len(groups)) :]
        else:
            busy = set().union(*groups, current)
            if written(text) & busy:
                found.append(text)
    return found


def test_a_hazard_is_seen() -> None:
    product = "HGMMA.SP.64x64x32.F32.BF16 R24, R100, gdesc[UR4], R24, R109, 0x1, gsb0 "
    loop = [
        product,
        "LDS R109, [R8+0x400] ",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0 ",
        "LDS.128 R100, [R4] ",
    ]
    assert hazards(loop) == [loop[1]]
    assert hazards([product, "LDS.128 R97, [R4] "]) == ["LDS.128 R97, [R4] "]
    assert hazards([product, "IMAD.WIDE R54, R1, R2, RZ "]) == ["IMAD.WIDE R54, R1, R2, RZ "]
    assert hazards([product, "LDS.128 R112, [R4] ", "STS [R24], R3 "]) == []


@pytest.fixture(scope="module")
def wide_kernels(root: Path) -> dict[str, list[tuple[int, str]]]:
    tool = cuobjdump()
    library = root / "kernels" / "secateur_kernels" / NAME
    if tool is None or not library.exists():
        pytest.skip("needs cuobjdump and the compiled library")
    command = [tool, "-sass", "-arch", "sm_90a", str(library)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: lines for name, lines in kernels(sass) if "4wide" in name}
    assert len(found) == 16
    return found


def panels_of(name: str) -> int:
    shape = PANELS.search(name)
    assert shape is not None
    return int(shape[1])


@pytest.mark.slow
def test_no_register_is_written_under_a_product(
    wide_kernels: dict[str, list[tuple[int, str]]],
) -> None:
    for name, lines in wide_kernels.items():
        before, loop, behind = products_of(lines)
        # Two steps of a panel, or one of two, each of two products, and the first step before; all
        # of them understood.
        panels = panels_of(name)
        assert sum(PRODUCT.search(text) is not None for text in loop) == 4, name
        assert sum(PRODUCT.search(text) is not None for text in before) == 2 * panels, name
        assert sum("HGMMA" in text for _, text in lines) == 4 + 2 * panels, name
        assert hazards([*before, *loop, *loop, *behind]) == [], name


@pytest.mark.slow
def test_a_step_is_short(wide_kernels: dict[str, list[tuple[int, str]]]) -> None:
    # Two steps of a panel, or one of two, with the turn at the end of the ring, which most steps
    # jump over. Where a stage lies, made anew in each step, makes them 85 and 65.
    most = {1: 80, 2: 48}
    for name, lines in wide_kernels.items():
        issued = [text for text in products_of(lines).loop if not text.startswith("NOP")]
        assert len(issued) <= most[panels_of(name)], name
