"""How much is measured of each linear layer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """Which candidates, and how often."""

    name: str
    competitors: bool
    """cuSPARSELt with its search, where calls are isolated."""
    ours: tuple[str, ...] | None
    """As of `candidates_for`: None for all."""
    rounds: int
    repeats: int


# Without what takes long to compile, or is there for comparison only.
_COMPILED = ("auto", "kernels", "cuda")
_ALL = (
    Extent("quick", False, _COMPILED, 7, 1),
    Extent("competitors", True, _COMPILED, 7, 1),
    Extent("full", True, None, 15, 3),
)
EXTENTS = {extent.name: extent for extent in _ALL}
"""Each holds what those before it hold."""
FULL = EXTENTS["full"]


def covers(measured: str, wanted: str) -> bool:
    """Whether a record of one extent makes another measurement needless."""
    names = list(EXTENTS)
    return names.index(measured) >= names.index(wanted)
