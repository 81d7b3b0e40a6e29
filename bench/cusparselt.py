"""cuSPARSELt's 2:4 product through torch, with its algorithm search: the public competitor.

Everything here may be missing from a torch build; then nothing is offered and the reason is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# cuSPARSELt wants a number of tokens divisible by 8 for 16-bit types. Padding is not timed.
_TOKENS_STEP = 8


@dataclass(frozen=True)
class Algorithm:
    """What the search found."""

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1


def why_not(device: torch.device) -> str | None:
    """None where torch was built with cuSPARSELt and the device is a GPU."""
    if device.type != "cuda":
        return "no NVIDIA GPU"
    if not torch.backends.cusparselt.is_available():
        return "torch was built without cuSPARSELt"
    return None


def compress(weight: Tensor) -> Tensor:
    """A 2:4 weight [N, K] with its zeros, as cuSPARSELt holds it."""
    return torch._cslt_compress(weight)


def candidates(
    compressed: tuple[Tensor, ...], x: Tensor
) -> tuple[dict[str, Callable[[int], object]], dict[str, str]]:
    """Products with default and searched algorithm, y as [M, N] and as [N, M].

    The second form is what the library computes by itself; a layer that follows may have to turn
    it, which is not timed.

    Args:
        compressed: copies of one weight, to be rotated.
        x: [M, K].

    Returns:
        name -> call with the index of the copy, and name -> the algorithm, or why it failed.
    """
    more = -len(x) % _TOKENS_STEP
    inputs = F.pad(x, (0, 0, 0, more)) if more else x
    calls: dict[str, Callable[[int], object]] = {}
    notes: dict[str, str] = {}
    for form, transpose in (("[M, N]", True), ("[N, M]", False)):
        algorithms = {"default": Algorithm()}
        try:
            algorithms["searched"] = _search(compressed[0], inputs, transpose)
        except (RuntimeError, AttributeError, TypeError) as error:
            notes[f"cusparselt searched {form}"] = f"failed: {error}"
        for kind, algorithm in algorithms.items():
            name = f"cusparselt {kind} {form}"
            notes[name] = str(algorithm)
            calls[name] = _call(compressed, inputs, algorithm, transpose)
    return calls, notes


def _call(
    compressed: tuple[Tensor, ...], inputs: Tensor, algorithm: Algorithm, transpose: bool
) -> Callable[[int], object]:
    def call(index: int) -> object:
        return torch._cslt_sparse_mm(
            compressed[index % len(compressed)],
            inputs.t(),
            transpose_result=transpose,
            alg_id=algorithm.alg_id,
            split_k=algorithm.split_k,
            split_k_mode=algorithm.split_k_mode,
        )

    return call


def _search(compressed: Tensor, inputs: Tensor, transpose: bool) -> Algorithm:
    """The fastest algorithm and split of K, or only the algorithm where torch does not say more."""
    search = getattr(getattr(torch._C, "_cusparselt", None), "mm_search", None)
    if search is not None:
        found = search(compressed, inputs.t(), None, None, None, transpose)
        return Algorithm(*(int(value) for value in found[:3]))
    return Algorithm(
        int(torch._cslt_sparse_mm_search(compressed, inputs.t(), transpose_result=transpose))
    )
