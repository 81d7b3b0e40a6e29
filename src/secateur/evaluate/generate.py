"""Continuations of a prompt, to see with one's own eyes what a model has become."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.evaluate.forward import check_token_ids, evaluating, input_device
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import context_length


def generate_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continue a prompt with the model's own `generate`.

    Args:
        max_new_tokens: the most that is added; less if the model ends the text.
        temperature: 0 takes the most likely token each time; above, tokens are sampled.
        top_p: sample from the likeliest tokens that have this much probability together.
        seed: of the sampling. The global random state is left as it was.

    Returns:
        The continuation alone, without special tokens. Settings that the checkpoint recommends
        (top-k, repetition penalty) are not used.

    Raises:
        SecateurError: an empty prompt, one that leaves no room for `max_new_tokens` in the
            model's context, or a setting out of range.
    """
    _check_settings(max_new_tokens, temperature, top_p)
    prompt_ids = _encode_prompt(model, tokenizer, prompt, max_new_tokens)
    settings = _sampling(temperature, top_p) | {"pad_token_id": tokenizer.eos_token_id or 0}
    token_ids = prompt_ids.unsqueeze(0).to(input_device(model))
    with evaluating(model), _seeded(token_ids.device, seed):
        output = _generate_method(model)(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=max_new_tokens,
            **settings,
        )
    return _continuation(tokenizer, prompt_ids.tolist(), output[0].tolist())


def _check_settings(max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise SecateurError(f"expected at least 1 new token, but got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise SecateurError(f"expected a temperature of 0 or more, but got {temperature}")
    if not 0 < top_p <= 1:
        raise SecateurError(f"expected top_p above 0 and at most 1, but got {top_p}")


def _encode_prompt(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, max_new_tokens: int
) -> torch.Tensor:
    token_ids = torch.tensor(tokenizer.encode(prompt, verbose=False) if prompt else [])
    if token_ids.numel() == 0:
        raise SecateurError(f"expected a prompt to continue, but got {prompt!r}")
    limit = context_length(model)
    if limit is not None and token_ids.numel() + max_new_tokens > limit:
        raise SecateurError(
            f"expected at most {limit} tokens, the model's context, but the prompt has "
            f"{token_ids.numel()} and {max_new_tokens} are to follow"
        )
    check_token_ids(model, token_ids)
    return token_ids


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    settings: dict[str, Any] = {"repetition_penalty": 1.0, "num_beams": 1}
    if temperature == 0:
        # None: a checkpoint's own sampling settings would only cause a warning here.
        return settings | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return settings | sampled


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _generate_method(model: nn.Module) -> Any:
    method = getattr(model, "generate", None)
    if method is None:
        raise SecateurError(
            f"expected a model with a generate method, but got {type(model).__name__}"
        )
    return method


def _continuation(tokenizer: Tokenizer, prompt_ids: list[int], token_ids: list[int]) -> str:
    """Text after the prompt; decoded with it, as some tokenizers drop a space at the start."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    prompt = tokenizer.decode(prompt_ids, skip_special_tokens=True)
    if text.startswith(prompt):
        return text[len(prompt) :]
    return tokenizer.decode(token_ids[len(prompt_ids) :], skip_special_tokens=True)
