"""Lists, rows of datasets and what loaders yield, as calibration."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from word_tokenizer import word_tokenizer

from secateur.calibration.data import load_calibration
from secateur.errors import SecateurError

IDS = [[5, 6, 7], [8, 9, 10]]
MASK = torch.tensor([[1, 1, 1], [0, 1, 1]])
TEMPLATE = "{% for m in messages %}w1 {{ m.content }} {% endfor %}"


def samples_of(source: Any, tokenizer: Any = None, **options: Any) -> list[list[int]]:
    return [s.tolist() for s in load_calibration(source, tokenizer, **options).samples]


@pytest.mark.parametrize(
    "source",
    [
        IDS,
        [torch.tensor(ids) for ids in IDS],
        [torch.tensor([ids]) for ids in IDS],
        [torch.tensor(IDS)],
        [{"input_ids": ids, "attention_mask": [1, 1, 1]} for ids in IDS],
        [{"input_ids": torch.tensor(IDS)}],
        list(np.array(IDS)),
        torch.utils.data.DataLoader(torch.tensor(IDS), batch_size=2),
        (ids for ids in IDS),
    ],
    ids=[
        "lists",
        "rows",
        "batches of one",
        "a batch",
        "masked",
        "mapping",
        "arrays",
        "loader",
        "iterator",
    ],
)
def test_token_ids_one_after_another_are_taken_as_they_are(source: Any) -> None:
    assert samples_of(source) == IDS


def test_rows_of_different_lengths_are_none() -> None:
    with pytest.raises(SecateurError, match=r"expected calibration token ids, got \[\[1, 2\], \[3"):
        samples_of([{"input_ids": [[1, 2], [3]]}])


def test_a_row_without_ids_among_others_is_named() -> None:
    message = r"expected `input_ids` in every .*, but sample 1 has the keys \['text'\]"
    with pytest.raises(SecateurError, match=message):
        samples_of([{"input_ids": [1, 2]}, {"text": "w1 w2"}])


def test_a_mapping_holds_tensors() -> None:
    ids = torch.tensor(IDS)
    for source, kinds in (
        ({"input_ids": IDS}, r"\{'input_ids': 'list'\}"),
        ({"input_ids": ids, "attention_mask": MASK.tolist()}, "'attention_mask': 'list'"),
    ):
        with pytest.raises(
            SecateurError, match=rf"both tensors \[samples, length\]; got .*{kinds}"
        ):
            samples_of(source)


def test_padding_of_rows_is_cut_off() -> None:
    assert samples_of([{"input_ids": torch.tensor(IDS), "attention_mask": MASK}]) == [
        [5, 6, 7],
        [9, 10],
    ]


def test_rows_of_text_are_the_texts() -> None:
    texts = ["w1 w2 w3 w4", "w5 w6 w7"]
    expected = samples_of(texts, word_tokenizer(), num_samples=3, max_seq_length=4)
    for source in (
        [{"text": text} for text in texts],
        iter(texts),
        ({"content": t} for t in texts),
    ):
        assert samples_of(source, word_tokenizer(), num_samples=3, max_seq_length=4) == expected


def test_what_never_ends_is_read_as_far_as_needed() -> None:
    def forever() -> Iterator[str]:
        while True:
            yield "w1 w2 w3"

    assert len(samples_of(forever(), word_tokenizer(), num_samples=2, max_seq_length=4)) == 2


def test_conversations_become_text_by_the_template() -> None:
    tokenizer = word_tokenizer()
    rows = [{"messages": [{"role": "user", "content": "w2 w3"}]}] * 3
    with pytest.raises(SecateurError, match=r"calibration, text 1: the tokenizer has no chat"):
        samples_of(rows, tokenizer, num_samples=1, max_seq_length=9)
    tokenizer.chat_template = TEMPLATE
    whole = tokenizer.encode("w1 w2 w3", add_special_tokens=False) * 3
    assert samples_of(rows, tokenizer, num_samples=1, max_seq_length=9) == [whole]
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(SecateurError, match="refuses these messages: no such role"):
        samples_of(rows, tokenizer, num_samples=1, max_seq_length=9)
