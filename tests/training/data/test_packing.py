from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizers import EOS, PAD, CountingTokenizer, ids_of
from families import FAMILIES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import SecateurError
from secateur.training.data import TrainingText, keeps_examples_apart, load_training_data, packing
from secateur.training.data.blocks import Tally
from secateur.training.data.packing import EncodedExample, packed_windows
from secateur.training.data.windows import training_item
from secateur.training.run import TrainingTexts

LENGTH = 10


def example(number: int, num_prompt: int, num_response: int) -> EncodedExample:
    """Tokens that say whose they are: 100 times the example's number, plus the place."""
    loss = np.arange(num_prompt + num_response) >= num_prompt
    return EncodedExample(100 * number + np.arange(len(loss)), loss)


def unpacked(
    examples: list[EncodedExample], tally: Tally, *, pack: bool = True
) -> list[dict[str, list[int]]]:
    blocks = list(packed_windows(examples, LENGTH, -7, pack, tally))
    return [
        {name: value.tolist() for name, value in training_item(*row).items()}
        for block in blocks
        for row in zip(block.tokens, block.loss, block.starts, strict=True)  # type: ignore[arg-type]
    ]


def test_first_window_with_room_takes_an_example() -> None:
    examples = [example(n, 1, size - 1) for n, size in enumerate([6, 7, 4, 3, 5], start=1)]
    tally = Tally()
    first, second, third = unpacked(examples, tally)
    assert first["input_ids"] == [*range(100, 106), *range(300, 304)]
    assert first["position_ids"] == [*range(6), *range(4)]
    assert first["labels"] == [-100, *range(101, 106), -100, *range(301, 304)]
    assert second["input_ids"] == [*range(200, 207), *range(400, 403)]
    assert third["input_ids"] == [*range(500, 505), *[-7] * 5]
    assert third["position_ids"] == [*range(5), *range(5)]
    assert third["labels"] == [-100, *range(501, 505), *[-100] * 5]
    assert tally == Tally(num_documents=5, num_read=25, num_tokens=25)


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=20),
    pack=st.booleans(),
    num_open=st.integers(1, 4),
)
def test_every_example_is_whole_once(
    sizes: list[tuple[int, int]], pack: bool, num_open: int
) -> None:
    examples = [example(n, *size) for n, size in enumerate(sizes, start=1)]
    kept = {
        n: min(prompt + response, LENGTH)
        for n, (prompt, response) in enumerate(sizes, start=1)
        # The first token of an example is not learned.
        if min(prompt + response, LENGTH) > max(prompt, 1) and response > 0
    }
    tally = Tally()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_OPEN_WINDOWS", num_open)
        windows = unpacked(examples, tally, pack=pack)
    found: dict[int, int] = {}
    for window in windows:
        place = 0
        while place < LENGTH and window["input_ids"][place] >= 0:
            number = window["input_ids"][place] // 100
            size, prompt = kept[number], sizes[number - 1][0]
            here = slice(place, place + size)
            assert window["input_ids"][here] == [100 * number + i for i in range(size)]
            assert window["position_ids"][here] == list(range(size))
            labels = [100 * number + i if i >= max(prompt, 1) else -100 for i in range(size)]
            assert window["labels"][here] == labels
            found[number] = size
            place += size
            assert pack or window["input_ids"][place : place + 1] in ([], [-7])
        assert window["labels"][place:] == [-100] * (LENGTH - place)
        assert place > 0
    assert found == kept
    assert tally.num_documents == len(sizes)
    assert tally.num_tokens == sum(kept.values())
    assert tally.num_dropped == len(sizes) - len(kept)
    assert tally.num_cut == sum(sum(sizes[n - 1]) > LENGTH for n in kept)
    if pack and num_open >= len(kept):
        # First fit: nothing in a later window would have fitted into an earlier one at its time.
        assert len(windows) <= 1 + 2 * sum(kept.values()) // LENGTH


def test_cut_and_dropped_are_counted_and_told(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    rows = [
        {"prompt": "abc", "response": "defghij"},
        {"prompt": "abcdefgh", "response": "ij"},
        {"prompt": "a", "response": "b"},
    ]
    data = load_training_data(TrainingText([rows], 8), tokenizer, tmp_path)
    assert (data.num_documents, data.num_cut, data.num_dropped) == (3, 1, 1)
    assert (data.num_windows, data.num_tokens, data.num_loss_tokens) == (2, 11, 7)
    assert data.remarks == (
        "examples cut at the end of a window: 1 of 3 in 3 texts",
        "examples left out for want of a response: 1 of 3 in 3 texts",
    )
    assert TrainingTexts(data, data).to_record().remarks == data.remarks
    assert data.dataset[0]["input_ids"].tolist() == ids_of("abcdefgh")
    assert data.dataset[1]["input_ids"].tolist() == [*ids_of("ab"), EOS, *[PAD] * 5]


def test_nothing_to_learn_is_refused(tokenizer: CountingTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "abcdefgh", "response": "ij"}] * 2
    message = "nothing to learn: none of the 2 examples of 2 texts has a response that begins with"
    with pytest.raises(SecateurError, match=message):
        load_training_data(TrainingText([rows], 8), tokenizer, tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    with pytest.raises(SecateurError, match=r"training text is empty: .*a\.jsonl holds no text"):
        load_training_data(TrainingText(path, 8, format="chat"), tokenizer, tmp_path)


def test_one_example_a_window_has_no_positions(
    tokenizer: CountingTokenizer, tmp_path: Path
) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    data = load_training_data(TrainingText([rows], 5, pack=False), tokenizer, tmp_path)
    items = [data.dataset[row] for row in range(data.num_windows)]
    assert [set(item) for item in items] == [{"input_ids", "labels"}] * 2
    assert items[1]["input_ids"].tolist() == [*ids_of("cd"), EOS, PAD, PAD]
    assert items[1]["labels"].tolist() == [-100, *ids_of("d"), EOS, -100, -100]


def packed_batch() -> tuple[dict[str, torch.Tensor], list[tuple[int, slice, torch.Tensor]]]:
    """Two windows of examples, and where each example is."""
    generator = np.random.default_rng(0)
    sizes = [9, 12, 7, 4, 11, 3]
    examples = [
        EncodedExample(generator.integers(3, 128, size), np.arange(size) > 0) for size in sizes
    ]
    (block,) = packed_windows(examples, 24, 0, True, Tally())
    assert block.loss is not None
    assert block.starts is not None
    items = [
        training_item(*row) for row in zip(block.tokens, block.loss, block.starts, strict=True)
    ]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    places = []
    for example_ in examples:
        size = len(example_.tokens)
        row, start = next(
            (row, start)
            for row in range(len(items))
            for start in range(24 - size + 1)
            if (block.tokens[row, start : start + size] == example_.tokens).all()
        )
        places.append((row, slice(start, start + size), torch.from_numpy(example_.tokens)))
    assert {row for row, *_ in places} == {0, 1}
    return batch, places


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_packed_example_has_the_logits_that_it_has_alone(name: str, attention: str) -> None:
    model: Any = tiny_model(name)
    model.set_attn_implementation(attention)
    batch, places = packed_batch()
    with torch.no_grad():
        together = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        leaking = model(input_ids=batch["input_ids"], use_cache=False).logits
        worst = leaked = 0.0
        for row, here, tokens in places:
            alone = model(input_ids=tokens[None], use_cache=False).logits[0]
            worst = max(worst, float((together[row, here] - alone).abs().max()))
            leaked = max(leaked, float((leaking[row, here] - alone).abs().max()))
    largest = float(leaking.abs().max())
    assert leaked > 1e-2 * largest
    # Sums of a hundred fp32 products in another order, through two blocks.
    is_apart = worst <= 1e-4 * largest
    assert keeps_examples_apart(model) == is_apart
    # OPT makes its mask itself and does not look at positions for that.
    assert is_apart == (name != "opt")


class Leaky(nn.Module):
    """Looks at positions, but attends to everything before."""

    def __init__(self, takes_positions: bool) -> None:
        super().__init__()
        self.model = tiny_model("llama")
        self.takes_positions = takes_positions

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor, use_cache: bool, **options: Any) -> Any:
        if not self.takes_positions and options:
            raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
        mask = torch.ones_like(input_ids)
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=use_cache, **options)


@pytest.mark.parametrize("takes_positions", [True, False])
def test_model_that_mixes_examples_is_noticed(takes_positions: bool) -> None:
    assert not keeps_examples_apart(Leaky(takes_positions))
