"""A tiny model whose tokens are bytes, so that its text has broken characters in plenty."""

import pytest
from families import model_from
from transformers import LlamaConfig, PreTrainedModel

from secateur import Engine

EOS = 256


class ByteTokenizer:
    """Tokens 0 to 255 are bytes; those above are special and have no text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        kept = bytes(token for token in token_ids if token < 256)
        return kept.decode("utf-8", errors="replace")


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def byte_model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        pad_token_id=257,
        bos_token_id=258,
        eos_token_id=EOS,
    )
    return model_from(config, seed=1)


@pytest.fixture(scope="session")
def engine(byte_model: PreTrainedModel, tokenizer: ByteTokenizer) -> Engine:
    """Three rows of 80 tokens, prompts in chunks of 16; every test leaves it idle."""
    return Engine(byte_model, tokenizer, max_batch_size=3, max_length=80, prefill_chunk=16)
