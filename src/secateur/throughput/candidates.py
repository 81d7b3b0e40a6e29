"""The models that take turns: loaded from folders, or random ones of a shape in several forms."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.checkpoint.load import DTYPES, load_model
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.measure import num_bytes
from secateur.models.sublayers import removed_sublayers
from secateur.models.swap import compressed_modules
from secateur.modules import LowRankLinear, SparseLowRankLinear
from secateur.report.throughput_record import ThroughputModel
from secateur.throughput.bandwidth import streamed_bytes
from secateur.throughput.forms import apply_form, parse_form
from secateur.throughput.random_model import random_model
from secateur.throughput.shapes import shape_named


@dataclass(frozen=True, eq=False)
class Candidate:
    """One model under the name that figures give it."""

    name: str
    source: str
    model: nn.Module


def load_candidates(
    sources: Sequence[str], dtype: str, device: torch.device, trust_remote_code: bool = False
) -> list[Candidate]:
    """Models from folders or the Hub, named by the last part of their paths.

    Raises:
        SecateurError: one cannot be loaded; two have one path.
    """
    if len(set(sources)) != len(sources):
        raise SecateurError(f"expected different models, got {', '.join(sources)}")
    names = _short_names(sources)
    return [
        Candidate(
            name,
            name,
            load_model(source, dtype=dtype, trust_remote_code=trust_remote_code).model.to(device),
        )
        for name, source in zip(names, sources, strict=True)
    ]


def _short_names(sources: Sequence[str]) -> list[str]:
    """The last part of each path, or as much of it as tells them apart."""
    paths = [source.rstrip("/").split("/") for source in sources]
    for length in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def random_candidates(
    shape: str,
    forms: Sequence[str],
    dtype: str,
    device: torch.device,
    *,
    rank_fraction: float = 0.25,
    depth_kept: float = 0.75,
) -> list[Candidate]:
    """Models of one shape with equal random weights, in several forms; see `apply_form`.

    Raises:
        SecateurError: shape, form or number is not known, or a form comes twice.
    """
    found = shape_named(shape)
    parsed = [parse_form(text) for text in forms]
    if len(set(parsed)) != len(parsed) or not parsed:
        raise SecateurError(f"expected different forms, at least one, got {', '.join(forms)}")
    chosen = DTYPES[dtype]
    # As published models are.
    kind = torch.bfloat16 if chosen == "auto" else chosen
    assert isinstance(kind, torch.dtype)
    candidates = []
    for text, form in zip(forms, parsed, strict=True):
        # Anew each time: the dense weights of one form are gone before the next is made.
        model = random_model(found, kind, device)
        apply_form(model, form, rank_fraction=rank_fraction, depth_kept=depth_kept)
        candidates.append(Candidate(text, f"{shape}, {text}", model))
    return candidates


def described(candidate: Candidate, dense_blocks: int) -> ThroughputModel:
    """A candidate as data, in the form that it runs in.

    Args:
        candidate: loaded and accelerated.
        dense_blocks: of the deepest model of the run.
    """
    model = candidate.model
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return ThroughputModel(
        name=candidate.name,
        source=candidate.source,
        form=_form(model, dense_blocks),
        num_blocks=len(find_blocks(model)),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        weight_bytes=num_bytes(model),
        streamed_bytes=streamed_bytes(model),
        is_reference=_has_24(model) and next(model.parameters()).device.type != "cuda",
    )


def _has_24(model: nn.Module) -> bool:
    layers = compressed_modules(model).values()
    return any(not isinstance(layer, LowRankLinear) for layer in layers)


def _form(model: nn.Module, dense_blocks: int) -> str:
    layers = compressed_modules(model).values()
    parts = {
        "2:4": _has_24(model),
        "low-rank": any(isinstance(x, LowRankLinear | SparseLowRankLinear) for x in layers),
        "depth": len(find_blocks(model)) < dense_blocks or bool(removed_sublayers(model)),
    }
    return "+".join(name for name, there in parts.items() if there) or "dense"
