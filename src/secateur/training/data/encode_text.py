"""Plain text to windows: documents tokenised in batches, joined end to end, cut."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from secateur.texts.dataset_rows import dataset_rows
from secateur.texts.files import file_rows, is_json_lines
from secateur.texts.pieces import Piece, file_pieces, text_pieces
from secateur.texts.rows import Row, text_of
from secateur.texts.sources import source_files
from secateur.training.data.blocks import Tally, WindowBlock
from secateur.training.data.text import TrainingText
from secateur.training.data.tokenizer import TokenIds, Tokenizer, encode, first_tokens

# Enough for the threads of a fast tokenizer, little enough that its bookkeeping (over a hundred
# bytes a token) stays below a few hundred megabytes.
_CHARACTERS_AT_ONCE = 1 << 21
_PIECES_AT_ONCE = 1 << 12


def read_pieces(text: TrainingText) -> Iterator[Piece]:
    """The documents of all sources, long ones in pieces.

    Raises:
        SecateurError: a source cannot be read, or a row has no text.
    """
    for source in text.each_source:
        if not isinstance(source, str | Path):
            for number, value in enumerate(source, start=1):
                yield from text_pieces(text_of(Row("texts", "text", number, value)))
            continue
        files = source_files(source, "training")
        if files is None:
            for row in dataset_rows(str(source)):
                yield from text_pieces(text_of(row))
        for path in files or ():
            if is_json_lines(path):
                for row in file_rows(path):
                    yield from text_pieces(text_of(row))
            else:
                yield from file_pieces(path, text.document_separator)


def text_windows(text: TrainingText, tokenizer: Tokenizer, tally: Tally) -> Iterator[WindowBlock]:
    """Windows of the documents joined end to end; what fills no window at the end is dropped.

    Each document begins as the tokenizer begins a text and ends with its end-of-sequence token;
    where there is no such token, documents follow one another without.

    Raises:
        SecateurError: as `read_pieces`.
    """
    length = text.max_seq_length
    rest = np.empty(0, dtype=np.int64)
    left = text.max_tokens
    for tokens in _token_stream(read_pieces(text), tokenizer, tally):
        if left is not None:
            tokens = tokens[:left]
            left -= len(tokens)
        tally.num_read += len(tokens)
        rest = np.concatenate([rest, tokens])
        full = len(rest) // length * length
        if full:
            tally.num_tokens += full
            yield WindowBlock(rest[:full].reshape(-1, length))
            rest = rest[full:].copy()
        if left == 0:
            return


def _token_stream(
    pieces: Iterable[Piece], tokenizer: Tokenizer, tally: Tally
) -> Iterator[TokenIds]:
    before = first_tokens(tokenizer)
    eos = tokenizer.eos_token_id
    after = np.asarray([] if eos is None else [eos], dtype=np.int64)
    for batch in _batches(pieces):
        encoded = encode(tokenizer, [piece.text for piece in batch])
        parts: list[TokenIds] = []
        for piece, ids in zip(batch, encoded, strict=True):
            tally.num_documents += piece.begins
            parts += [before] * piece.begins + [ids] + [after] * piece.ends
        yield np.concatenate(parts)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _CHARACTERS_AT_ONCE or len(batch) >= _PIECES_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
