"""A tokenizer of whole words for the tiny models."""

from pathlib import Path

from families import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateur.checkpoint.load import silence_transformers

WORDS = tuple(f"w{index}" for index in range(100))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Knows `WORDS` and three special tokens, with room to spare in a tiny model's vocabulary."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def save_tiny_llama(folder: Path, num_blocks: int = 2) -> Path:
    """A model and its tokenizer; returns the folder."""
    silence_transformers()
    tiny_model("llama", num_blocks).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder
