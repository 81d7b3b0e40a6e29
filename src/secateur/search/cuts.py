"""Cut matrices: each decomposed once, put into the model for a while, taken out bit for bit."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import Factors, Svd, discarded, exact_svd, kept, write_back
from secateur.models.sites import WeightSite


class CutMatrix:
    """The cuts of one matrix of a model, which must be dense while a cut is made."""

    def __init__(self, site: WeightSite) -> None:
        self.site = site
        self._svd: Svd | None = None

    def svd(self) -> Svd:
        """Of the matrix; computed at the first call and kept until `forget`.

        Raises:
            SecateurError: the matrix holds NaN or Inf.
        """
        if self._svd is None:
            try:
                self._svd = exact_svd(self.site.weight)
            except SecateurError as error:
                raise SecateurError(f"{self.site.name}: {error}") from None
        return self._svd

    def forget(self) -> None:
        """Give the decomposition's memory back."""
        self._svd = None

    def weight(self, fraction: float, answer_with: str = "kept") -> Tensor:
        """The matrix [N, K] of the `kept` or the `discarded` components, in the model's dtype."""
        parts: Callable[[Svd, float], Factors] = kept if answer_with == "kept" else discarded
        return write_back(parts(self.svd(), fraction), self.site.weight)


@contextmanager
def replaced(weights: Mapping[WeightSite, Tensor]) -> Iterator[None]:
    """While this is open, these matrices have other values; then their own, bit for bit.

    Args:
        weights: [N, K] by site, each of the site's shape and dtype.
    """
    with ExitStack() as stack:
        for site, weight in weights.items():
            stack.enter_context(_replaced(site, weight))
        yield


@contextmanager
def _replaced(site: WeightSite, weight: Tensor) -> Iterator[None]:
    original = site.weight.clone()
    try:
        with torch.no_grad():
            site.weight.copy_(weight)
        yield
    finally:
        with torch.no_grad():
            site.weight.copy_(original)
