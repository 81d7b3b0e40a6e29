"""From a `TrainingText` to `TrainingData`: out of the cache, or tokenised and cached."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from secateur.errors import SecateurError
from secateur.settings import read_settings
from secateur.training.data.blocks import Tally, WindowBlock
from secateur.training.data.cache import cache_key, written_aside
from secateur.training.data.encode_text import text_windows
from secateur.training.data.stored import StoredWindows, read_stored, write_windows
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import Tokenizer, token_type
from secateur.training.data.training_data import TrainingData, check_token
from secateur.training.data.windows import WindowDataset

_CACHE_FOLDER = "training-data"


def load_training_data(
    text: TrainingText,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    *,
    vocab_size: int | None = None,
) -> TrainingData:
    """Windows of a text, tokenised now or the last time the same was asked for.

    Args:
        text: sources and options.
        tokenizer: of the model.
        cache: folder in which tokens are kept; None: that of the settings (`SECATEUR_CACHE`).
        vocab_size: rows of the model's embedding, to refuse token ids that it has no row for.

    Raises:
        SecateurError: a source is missing, cannot be read, or gives no window; a token id is
            outside the vocabulary; the cache cannot be written.
    """
    folder = (cache or read_settings().cache) / _CACHE_FOLDER / cache_key(text, tokenizer)
    stored = read_stored(folder)
    if stored is None:
        stored = _make(folder, text, tokenizer, vocab_size)
    if vocab_size is not None:
        check_token(stored.largest_token, vocab_size, text.name)
    return _training_data(text, WindowDataset(folder, stored), tokenizer)


def _make(
    folder: Path, text: TrainingText, tokenizer: Tokenizer, vocab_size: int | None
) -> StoredWindows:
    tally = Tally()
    blocks = _within(text_windows(text, tokenizer, tally), vocab_size, text.name)
    with written_aside(folder) as aside:
        stored = write_windows(
            aside, blocks, tally, text.max_seq_length, token_type(tokenizer), has_examples=False
        )
        if stored.num_windows == 0:
            raise SecateurError(_too_short(text, tally))
    return stored


def _within(
    blocks: Iterable[WindowBlock], vocab_size: int | None, source: str
) -> Iterator[WindowBlock]:
    """The same windows, refused as soon as a token id is outside the vocabulary."""
    for block in blocks:
        if vocab_size is not None:
            check_token(int(block.tokens.max(initial=0)), vocab_size, source)
        yield block


def _too_short(text: TrainingText, tally: Tally) -> str:
    if tally.num_documents == 0:
        return f"training text is empty: {text.name} holds no text"
    return (
        f"training text is too short: {text.name} gives {tally.num_read} tokens, but one window "
        f"of max_seq_length needs {text.max_seq_length}; give more text or a smaller "
        "max_seq_length"
    )


def _training_data(
    text: TrainingText, dataset: WindowDataset, tokenizer: Tokenizer
) -> TrainingData:
    stored = dataset.stored
    notes = ["documents follow one another without a token between: the tokenizer has no eos_token"]
    return TrainingData(
        dataset=dataset,
        source=text.name,
        max_seq_length=text.max_seq_length,
        num_windows=stored.num_windows,
        num_documents=stored.num_documents,
        num_tokens=stored.num_tokens,
        num_loss_tokens=stored.num_loss_tokens,
        num_cut=stored.num_cut,
        num_dropped=stored.num_dropped,
        largest_token=stored.largest_token,
        sha256=stored.sha256,
        notes=tuple(notes if tokenizer.eos_token_id is None else ()),
    )
