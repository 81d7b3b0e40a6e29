"""How many weights go, and in which pattern."""

from dataclasses import dataclass

from secateur.errors import SecateurError

UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class Sparsity:
    """How many weights go, and in which pattern.

    Either `unstructured` with `fraction` of the weights removed, or `keep` weights kept of every
    `group` consecutive ones along K (2:4 is keep=2, group=4).
    """

    fraction: float
    keep: int | None = None
    group: int | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether this is a keep:group pattern."""
        return self.group is not None

    @property
    def name(self) -> str:
        """`2:4` or `0.5 unstructured`."""
        return (
            f"{self.keep}:{self.group}" if self.is_grouped else f"{self.fraction:.4g} unstructured"
        )

    @property
    def makes_sparse24(self) -> bool:
        """Whether no four of a row keep more than two: under 2:4, and under sparser patterns."""
        if self.keep is None or self.group is None:
            return False
        # Four in a row lie in two groups at most, or in one where the groups are whole fours.
        return self.keep == 1 or (self.keep == 2 and self.group % 4 == 0)


def parse_sparsity(pattern: str, fraction: float | None) -> Sparsity:
    """Turn the two options that people write into one value.

    Args:
        pattern: `unstructured`, or `keep:group` such as `2:4`.
        fraction: the fraction of zeros wanted, in (0, 1). Needed for `unstructured`; for a
            keep:group pattern it may be left out and must agree with it if given.

    Raises:
        SecateurError: the pattern cannot be read, removes everything or removes nothing.
    """
    if pattern == UNSTRUCTURED:
        if fraction is None or not 0.0 < fraction < 1.0:
            raise SecateurError(
                "unstructured sparsity needs `sparsity`, the fraction of weights to remove, "
                f"above 0 and below 1; got {fraction}"
            )
        return Sparsity(fraction=fraction)
    keep, group = _parse_keep_group(pattern)
    implied = 1.0 - keep / group
    if fraction is not None and not abs(fraction - implied) <= 1e-9:
        raise SecateurError(
            f"pattern {pattern} removes {implied:.4g} of the weights, but sparsity says "
            f"{fraction:.4g}; leave `sparsity` out with a keep:group pattern"
        )
    return Sparsity(fraction=implied, keep=keep, group=group)


def _parse_keep_group(pattern: str) -> tuple[int, int]:
    keep_text, colon, group_text = pattern.partition(":")
    if not (colon and keep_text.isdecimal() and group_text.isdecimal()):
        raise SecateurError(
            f"expected pattern `unstructured` or `keep:group` such as `2:4`, got {pattern!r}"
        )
    keep, group = int(keep_text), int(group_text)
    if keep == 0 or group == 0:
        raise SecateurError(f"pattern {pattern} would remove every weight; keep at least one")
    if keep >= group:
        raise SecateurError(
            f"pattern {pattern} keeps {keep} of every {group} and would remove nothing; "
            "keep fewer than the group holds"
        )
    return keep, group
