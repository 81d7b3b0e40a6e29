"""Samples to train a block on, and samples that decide which of its rounds is best."""

from collections.abc import Sequence

import torch

from secateur.errors import SecateurError
from secateur.reconstruct.settings import ReconstructionSettings
from secateur.spans import Span, apart


def split_samples(
    count: int,
    spans: Sequence[Span] | None,
    settings: ReconstructionSettings,
    generator: torch.Generator,
) -> tuple[list[int], list[int]]:
    """Draw the samples that are held out.

    Args:
        count: of samples.
        spans: by sample; None where they are not known.
        settings: that say which share is held out.
        generator: of the draw.

    Returns:
        (held out, trained on). Samples that share tokens with those held out are in neither.

    Raises:
        SecateurError: too few to hold some out, or none is left to train on.
    """
    order = torch.randperm(count, generator=generator).tolist()
    num_held_out = round(settings.held_out * count)
    held_out, others = sorted(order[:num_held_out]), sorted(order[num_held_out:])
    if not others or (settings.held_out and not held_out):
        raise SecateurError(
            f"expected enough samples to train on and to hold {settings.held_out:g} of them out, "
            f"got {count}"
        )
    training = apart(others, held_out, spans)
    if not training:
        raise SecateurError(
            f"expected samples to train on that share no token with the {num_held_out} held out, "
            f"but all {len(others)} others do; give more text, fewer or shorter samples, or hold "
            "none out"
        )
    return held_out, training
