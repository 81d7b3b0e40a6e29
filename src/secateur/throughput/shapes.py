"""Shapes of known models by name, so that speed can be measured without downloading one."""

from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError


@dataclass(frozen=True)
class ModelShape:
    """What decides how fast a model is: its configuration, without its weights."""

    name: str
    model_type: str
    """As transformers names it."""
    fields: dict[str, Any]
    """Of the configuration."""
    note: str = ""
    """What a reader of figures should know."""


_LLAMA_3 = {"vocab_size": 128256, "head_dim": 128, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
_QWEN_3 = {"vocab_size": 151936, "head_dim": 128, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}


def _llama_like(
    name: str,
    model_type: str,
    base: dict[str, Any],
    sizes: tuple[int, int, int, int, int],
    tied: bool = False,
    note: str = "",
    **more: Any,
) -> ModelShape:
    """Sizes: hidden, intermediate, blocks, heads, key-value heads."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields = dict(zip((*keys, "num_key_value_heads"), sizes, strict=True))
    positions = {"max_position_embeddings": 40960, "tie_word_embeddings": tied}
    return ModelShape(name, model_type, {**base, **positions, **fields, **more}, note)


_ONE_BLOCK = "one block of 80, and a vocabulary of 8192 so that the block decides"

SHAPES = {
    shape.name: shape
    for shape in (
        _llama_like("llama-3-8b", "llama", _LLAMA_3, (4096, 14336, 32, 32, 8)),
        _llama_like(
            *("llama-3-70b-block", "llama", _LLAMA_3, (8192, 28672, 1, 64, 8)),
            note=_ONE_BLOCK,
            vocab_size=8192,
        ),
        _llama_like(
            *("llama-3.2-1b", "llama", _LLAMA_3, (2048, 8192, 16, 32, 8)), tied=True, head_dim=64
        ),
        _llama_like("qwen3-8b", "qwen3", _QWEN_3, (4096, 12288, 36, 32, 8)),
        _llama_like("qwen3-0.6b", "qwen3", _QWEN_3, (1024, 3072, 28, 16, 8), tied=True),
        _llama_like(
            *("llama-8m", "llama", _LLAMA_3, (256, 768, 8, 8, 4)),
            tied=True,
            vocab_size=4096,
            head_dim=32,
        ),
        _llama_like(
            *("tiny", "llama", _LLAMA_3, (64, 128, 4, 4, 2)),
            tied=True,
            note="shows that the code works; its speed means nothing",
            vocab_size=512,
            head_dim=16,
        ),
    )
}
"""Name -> shape. Published configurations, with positions for long prompts."""


def shape_named(name: str) -> ModelShape:
    """One of `SHAPES`.

    Raises:
        SecateurError: there is no shape of this name.
    """
    if name not in SHAPES:
        raise SecateurError(f"expected --shape one of {', '.join(SHAPES)}, got {name!r}")
    return SHAPES[name]
