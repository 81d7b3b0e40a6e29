"""Greedy answers to many prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.forward import (
    check_batch_size,
    check_token_ids,
    evaluating,
    input_device,
)
from secateur.evaluate.generate import continue_tokens, generate_method
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import context_length


class GreedyAnswers:
    """Fixed prompts, encoded once, that a model continues as often as it changes."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        """Encode the prompts; one that leaves no room in the context loses its beginning.

        Raises:
            SecateurError: an empty prompt, a model that cannot generate, or a context of no more
                than `max_new_tokens`.
        """
        check_batch_size(batch_size)
        limit = context_length(model)
        if limit is not None and limit <= max_new_tokens:
            raise SecateurError(
                f"expected fewer new tokens than the model's context of {limit}, "
                f"but got {max_new_tokens}"
            )
        self._model = model
        generate_method(model)
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        room = None if limit is None else limit - max_new_tokens
        ids = [_encode(tokenizer, prompt) for prompt in prompts]
        self.num_truncated = sum(room is not None and len(part) > room for part in ids)
        self._ids = [part if room is None else part[-room:] for part in ids]
        for part in self._ids:
            check_token_ids(model, torch.tensor(part))
        self._batch_size = batch_size

    def texts(self) -> tuple[str, ...]:
        """What follows each prompt, without special tokens and outer spaces."""
        found: dict[int, str] = {}
        with evaluating(self._model):
            for indices in self._equal_lengths():
                rows = torch.tensor([self._ids[index] for index in indices])
                for index, new in zip(indices, self._continue(rows), strict=True):
                    text = self._tokenizer.decode(new, skip_special_tokens=True)
                    found[index] = text.strip()
        return tuple(found[index] for index in range(len(self._ids)))

    def _continue(self, rows: torch.Tensor) -> list[list[int]]:
        token_ids = rows.to(input_device(self._model))
        output = continue_tokens(self._model, self._tokenizer, token_ids, self._max_new_tokens)
        continued: list[list[int]] = output[:, rows.shape[1] :].tolist()
        return continued

    def _equal_lengths(self) -> Iterator[list[int]]:
        """Prompts of one length together: nothing is padded, so that nothing has to be masked."""
        order = sorted(range(len(self._ids)), key=lambda index: -len(self._ids[index]))
        batch: list[int] = []
        for index in order:
            if batch and (
                len(batch) == self._batch_size or len(self._ids[index]) != len(self._ids[batch[0]])
            ):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def contains(text: str, answer: str) -> bool:
    """Whether an answer was given, as published: letters' case and outer spaces do not matter."""
    return answer.strip().lower() in text.strip().lower()


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    # Spaces at the end belong to the word that follows, as tokenizers join them.
    ids = tokenizer.encode(prompt.rstrip(), verbose=False) if prompt.strip() else []
    if not ids:
        raise SecateurError(f"expected a prompt to continue, but got {prompt!r}")
    return ids
