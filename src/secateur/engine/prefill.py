"""Prompts into the cache, a chunk at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.engine.device_rows import DeviceRows
from secateur.engine.family import RowModel
from secateur.engine.scoring import scores_of
from secateur.engine.sequence import Sequence
from secateur.engine.slot_cache import KeyValueStore
from secateur.engine.transfer import Readback, to_device

_GRANULE = 64
_MOST_ROWS = 16
# Logits of all its tokens are there at the same time, in fp32 half a megabyte each for a large
# vocabulary.
_SCORED_TOKENS = 256
# Not cuDNN, torch's first choice on Hopper: it makes a plan for every new length, which takes tens
# of milliseconds, and keeps it for good.
_FOR_ANY_SHAPE = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class Chunk:
    """The next tokens of the prompts of some consecutive rows."""

    members: tuple[Sequence, ...]
    width: int
    """Tokens of the longest part; shorter ones are padded in front."""

    @property
    def first_row(self) -> int:
        """Row of the first member."""
        row = self.members[0].row
        assert row is not None
        return row

    @property
    def is_scored(self) -> bool:
        """Whether the tokens of its prompts are scored: of all members, or of none."""
        return self.members[0].options.prompt_logprobs

    def share(self, member: Sequence) -> int:
        """Tokens of one member."""
        return min(len(member.prompt) - member.computed, self.width)


def next_chunk(prefilling: Mapping[int, Sequence], budget: int) -> Chunk:
    """The oldest request's chunk, with neighbours that fit.

    Args:
        prefilling: by row; at least one.
        budget: tokens of a chunk, padding included. A neighbour joins if no member is padded to
            more than twice its length.
    """
    oldest = min(prefilling.values(), key=lambda member: member.request_id)
    assert oldest.row is not None
    scored = oldest.options.prompt_logprobs
    budget = min(budget, _SCORED_TOKENS) if scored else budget
    members = [oldest]
    narrowest = width = min(_remaining(oldest), budget)
    while len(members) < _MOST_ROWS:
        neighbour = prefilling.get(oldest.row + len(members))
        if neighbour is None or neighbour.options.prompt_logprobs != scored:
            break
        share = min(_remaining(neighbour), budget)
        new_width, new_narrowest = max(width, share), min(narrowest, share)
        if (len(members) + 1) * new_width > budget or 2 * new_narrowest < new_width:
            break
        members.append(neighbour)
        width, narrowest = new_width, new_narrowest
    return Chunk(tuple(members), width)


def _remaining(sequence: Sequence) -> int:
    return len(sequence.prompt) - sequence.computed


@torch.no_grad()
def compute_chunk(
    chunk: Chunk, model: RowModel, store: KeyValueStore, rows: DeviceRows
) -> tuple[Tensor, Tensor]:
    """Write a chunk's keys and values; scores of its tokens go to its members, if they want any.

    Returns:
        Logits [R, vocabulary] behind the last token of every member, and where these tokens
        stand, int64 [R].
    """
    token_ids, positions = _inputs(chunk, rows.idle_position)
    last = max(member.computed + chunk.share(member) for member in chunk.members)
    token_ids = to_device(token_ids, rows.tokens.device)
    positions = to_device(positions, rows.tokens.device)
    if len(chunk.members) == 1:
        length = last
        masks = model.causal_masks(positions, length)
    else:
        # Kernels with a mask want its rows aligned.
        length = min(-(-last // _GRANULE) * _GRANULE, store.length)
        masks = model.masks(positions, length)
    window = store.window(chunk.first_row, positions, length)
    with model.attending(), sdpa_kernel(_FOR_ANY_SHAPE):
        if chunk.is_scored:
            logits = model.all_logits(token_ids, window, masks)
            _score(chunk, logits)
            logits = logits[:, -1]
        else:
            logits = model.last_logits(token_ids, window, masks)
    for member in chunk.members:
        member.computed += chunk.share(member)
    return logits, positions[:, -1]


def _score(chunk: Chunk, logits: Tensor) -> None:
    """Score what stands behind every token of the chunk by logits [R, width, vocabulary]."""
    for own, member in zip(logits, chunk.members, strict=True):
        first = member.computed + 1
        following = torch.tensor(member.prompt[first : first + chunk.share(member)])
        if len(following):
            begin = chunk.width - chunk.share(member)
            tokens = to_device(following, logits.device)
            scores = scores_of(own[begin : begin + len(tokens)], tokens)
            member.prompt_readbacks.append(Readback(tokens, scores))


@torch.no_grad()
def rehearse_chunk(width: int, model: RowModel, store: KeyValueStore, rows: DeviceRows) -> None:
    """Compute a chunk of `width` tokens that is kept nowhere, so that kernels and memory are there.

    Args:
        width: at most the positions of `store`.
    """
    token_ids = torch.zeros(1, width, dtype=torch.int64, device=rows.tokens.device)
    positions = torch.full_like(token_ids, rows.idle_position)
    window = store.window(0, positions, store.length)
    with model.attending(), sdpa_kernel(_FOR_ANY_SHAPE):
        model.last_logits(token_ids, window, model.causal_masks(positions, store.length))


def _inputs(chunk: Chunk, idle_position: int) -> tuple[Tensor, Tensor]:
    """Tokens and positions int64 [R, width]; padding stands where nothing is read."""
    token_ids = torch.zeros(len(chunk.members), chunk.width, dtype=torch.int64)
    positions = torch.full_like(token_ids, idle_position)
    for index, member in enumerate(chunk.members):
        share = chunk.share(member)
        first = member.computed
        token_ids[index, -share:] = torch.tensor(member.prompt[first : first + share])
        positions[index, -share:] = torch.arange(first, first + share)
    return token_ids, positions
