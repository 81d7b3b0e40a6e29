"""Windows to measure on out of a text of their own."""

from dataclasses import replace
from pathlib import Path

from secateur.training.data.load import load_training_data
from secateur.training.data.split import spread
from secateur.training.data.text import Source, TrainingText
from secateur.training.data.tokenizer import Tokenizer
from secateur.training.data.training_data import TrainingData


def load_held_out(
    source: Source,
    like: TrainingText,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    *,
    num_windows: int | None = None,
    vocab_size: int | None = None,
) -> TrainingData:
    """Windows of another text, made as those that are trained on.

    Args:
        source: one source, as in `TrainingText`.
        like: what is trained on; its length of windows, format, separator and packing are kept.
        tokenizer: of the model.
        cache: as in `load_training_data`.
        num_windows: at most so many, evenly spread over the text; None: all.
        vocab_size: as in `load_training_data`.

    Raises:
        SecateurError: as `load_training_data`, or `num_windows` is below 1.
    """
    text = replace(like, sources=(source,), streaming=False, max_tokens=None)
    data = load_training_data(text, tokenizer, cache, vocab_size=vocab_size)
    return data if num_windows is None else spread(data, num_windows)
