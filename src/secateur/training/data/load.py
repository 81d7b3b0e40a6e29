"""From a `TrainingText` to `TrainingData`: out of the cache, or tokenised and cached."""

from pathlib import Path

from secateur.training.data.blocks import Tally
from secateur.training.data.cache import cache_key, written_aside
from secateur.training.data.encode import Encoder, make_encoder
from secateur.training.data.stored import StoredWindows, read_stored, write_windows
from secateur.training.data.streamed import StreamedWindows
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import Tokenizer, token_type
from secateur.training.data.training_data import TrainingData, check_token
from secateur.training.data.windows import WindowDataset
from secateur_kernels.settings import cache_folder

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
    if text.streaming:
        encoder = make_encoder(text, tokenizer, vocab_size)
        return TrainingData(
            dataset=StreamedWindows(encoder),
            source=text.name,
            max_seq_length=text.max_seq_length,
            notes=_notes(encoder.format == "text", tokenizer),
        )
    folder = (cache or cache_folder()) / _CACHE_FOLDER / cache_key(text, tokenizer)
    stored = read_stored(folder)
    if stored is None:
        stored = _make(folder, make_encoder(text, tokenizer, vocab_size))
    if vocab_size is not None:
        check_token(stored.largest_token, vocab_size, text.name)
    return _training_data(text, WindowDataset(folder, stored), tokenizer)


def _make(folder: Path, encoder: Encoder) -> StoredWindows:
    tally = Tally()
    is_chat = encoder.format == "chat"
    with written_aside(folder) as aside:
        return write_windows(
            aside,
            encoder.windows(tally),
            tally,
            encoder.text.max_seq_length,
            token_type(encoder.tokenizer),
            has_examples=is_chat,
            is_packed=is_chat and encoder.text.pack,
        )


def _training_data(
    text: TrainingText, dataset: WindowDataset, tokenizer: Tokenizer
) -> TrainingData:
    stored = dataset.stored
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
        sha256=stored.sha256,
        notes=_notes(not stored.has_examples, tokenizer),
    )


def _notes(is_text: bool, tokenizer: Tokenizer) -> tuple[str, ...]:
    note = "documents follow one another with no token between: the tokenizer has no eos_token"
    return (note,) if is_text and tokenizer.eos_token_id is None else ()
