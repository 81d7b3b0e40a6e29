"""What there is to search: the matrices of a model by type and block, and the cuts of each."""

from collections.abc import Mapping
from dataclasses import dataclass

from secateur.errors import SecateurError
from secateur.lowrank import Intervention, MatrixType, rank_for_fraction
from secateur.models.inventory import Inventory
from secateur.models.matrix_types import matrix_type
from secateur.models.sites import WeightSite
from secateur.search.options import SearchOptions

Place = tuple[MatrixType, int]
"""A matrix: its type and its block."""

TYPES: tuple[MatrixType, ...] = ("q", "k", "v", "qkv", "o", "mlp_in", "mlp_up", "mlp_out")


@dataclass(frozen=True)
class SearchSpace:
    """Places in the order of trials: by block, then as in `TYPES`."""

    sites: Mapping[Place, WeightSite]
    cuts: Mapping[Place, tuple[Intervention, ...]]
    """Larger fractions first; those that leave a matrix no rank are left out."""
    notes: tuple[str, ...]

    def narrowed(self, places: set[Place]) -> "SearchSpace":
        """The same without the other places."""
        return SearchSpace(
            {place: site for place, site in self.sites.items() if place in places},
            {place: cuts for place, cuts in self.cuts.items() if place in places},
            self.notes,
        )


def search_space(inventory: Inventory, options: SearchOptions) -> SearchSpace:
    """The grid of a search.

    Raises:
        SecateurError: a block or a type that the model does not have, or nothing to cut.
    """
    sites = _typed_sites(inventory)
    _check_choice(sites, len(inventory.sites), options)
    chosen = {
        place: site
        for place, site in sites.items()
        if (options.types is None or place[0] in options.types)
        and (options.blocks is None or place[1] in options.blocks)
    }
    cuts = {place: _cuts(place, site, options.fractions) for place, site in chosen.items()}
    if not any(cuts.values()):
        smallest = min((min(site.shape) for site in chosen.values()), default=0)
        raise SecateurError(
            "expected matrices of these types in these blocks and fractions that leave them a "
            f"rank, but there are {len(chosen)} matrices, the smallest of full rank {smallest}"
        )
    kept = {place: site for place, site in chosen.items() if cuts[place]}
    return SearchSpace(
        kept, {place: cuts[place] for place in kept}, _notes(chosen, options.fractions)
    )


def rank_of(cut: Intervention, site: WeightSite) -> int:
    """The rank that a cut leaves."""
    return rank_for_fraction(cut.fraction, *site.shape)


def _typed_sites(inventory: Inventory) -> dict[Place, WeightSite]:
    found: dict[Place, WeightSite] = {}
    for block, sites in enumerate(inventory.sites):
        by_type = {matrix_type(site): site for site in sites}
        found |= {(name, block): by_type[name] for name in TYPES if name in by_type}
    return found


def _check_choice(
    sites: Mapping[Place, WeightSite], num_blocks: int, options: SearchOptions
) -> None:
    present = [name for name in TYPES if any(place[0] == name for place in sites)]
    if not present:
        raise SecateurError(
            f"found no matrix of a known type ({', '.join(TYPES)}) in the blocks of this model: "
            "fused matrices and experts have none"
        )
    missing = [name for name in options.types or () if name not in present]
    if missing:
        raise SecateurError(
            f"expected matrix types that this model has, {', '.join(present)}, "
            f"got {', '.join(missing)}"
        )
    beyond = [block for block in options.blocks or () if block >= num_blocks]
    if beyond:
        raise SecateurError(
            f"expected blocks from 0 to {num_blocks - 1}, got {', '.join(map(str, beyond))}"
        )


def _cuts(place: Place, site: WeightSite, fractions: tuple[float, ...]) -> tuple[Intervention, ...]:
    return tuple(
        Intervention(*place, fraction)
        for fraction in sorted(fractions, reverse=True)
        if _leaves_rank(fraction, site)
    )


def _leaves_rank(fraction: float, site: WeightSite) -> bool:
    try:
        rank_for_fraction(fraction, *site.shape)
    except SecateurError:
        return False
    return True


def _notes(sites: Mapping[Place, WeightSite], fractions: tuple[float, ...]) -> tuple[str, ...]:
    notes = []
    for fraction in fractions:
        types = [
            t
            for t in TYPES
            if any(
                place[0] == t and not _leaves_rank(fraction, site) for place, site in sites.items()
            )
        ]
        if types:
            notes.append(
                f"The fraction {fraction:g} leaves no rank in matrices of type "
                f"{', '.join(types)}: not tried there."
            )
    return tuple(notes)
