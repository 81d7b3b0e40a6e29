"""Continuations of a prompt, to see with one's own eyes what a model has become."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.evaluate.forward import check_token_ids, evaluating, input_device
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import context_length
from secateur.seeds import require_seed


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
        (top-k, penalties) are not used.

    Raises:
        SecateurError: an empty prompt, one that leaves no room for `max_new_tokens` in the
            model's context, or a setting out of range.
    """
    _check_settings(max_new_tokens, temperature, top_p)
    require_seed(seed)
    prompt_ids = _encode_prompt(model, tokenizer, prompt, max_new_tokens)
    token_ids = prompt_ids.unsqueeze(0).to(input_device(model))
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    with evaluating(model), _seeded(token_ids.device, seed):
        output = continue_tokens(model, tokenizer, token_ids, max_new_tokens, **sampling)
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


def continue_tokens(
    model: nn.Module, tokenizer: Tokenizer, token_ids: Tensor, max_new_tokens: int, **sampling: Any
) -> Tensor:
    """Token ids [B, T + new] after [B, T] without padding, by the model's own `generate`.

    The likeliest token each time, or sampled if there are settings for that. Of what the checkpoint
    recommends, only which tokens end a text counts.
    """
    advised = getattr(model, "generation_config", None)
    if advised is not None:
        plain = type(advised)(eos_token_id=advised.eos_token_id)
        model.generation_config = plain
    try:
        output: Tensor = generate_method(model)(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id or 0,
            do_sample=bool(sampling),
            **sampling,
        )
    finally:
        if advised is not None:
            model.generation_config = advised
    return output


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def generate_method(model: nn.Module) -> Any:
    """The model's own `generate`.

    Raises:
        SecateurError: it has none.
    """
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
