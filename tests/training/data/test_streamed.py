from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from byte_tokenizers import CountingTokenizer, byte_tokenizer
from families import tiny_model
from small_trainings import (
    LENGTH,
    Interrupted,
    StopAt,
    everything,
    options,
    same_values,
    train,
    training_data,
    values_of,
)
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from secateur.errors import SecateurError
from secateur.texts import pieces
from secateur.training.data import (
    TrainingData,
    TrainingText,
    encode_text,
    hold_out,
    load_training_data,
)
from secateur.training.run import TrainingTexts

CHAT = [{"prompt": f"{n}:", "response": "x" * (n % 7)} for n in range(40)]
TEXTS = [f"text number {n}" for n in range(40)]
# With the token that ends a text, one window of 8 each.
EIGHTS = [f"{n:07}" for n in range(60)]


def listed(items: Any) -> list[dict[str, list[int]]]:
    return [{name: value.tolist() for name, value in item.items()} for item in items]


def in_memory(data: TrainingData) -> list[dict[str, list[int]]]:
    return listed(data.dataset[row] for row in range(data.num_windows))


def streamed(text: TrainingText, tokenizer: CountingTokenizer | None = None) -> Any:
    data = load_training_data(text, tokenizer or byte_tokenizer())
    assert data.is_streamed
    assert isinstance(data.dataset, IterableDataset)
    return data.dataset


@pytest.mark.parametrize(
    "options", [{}, {"max_tokens": 45}, {"pack": False}, {"max_seq_length": 5}]
)
@pytest.mark.parametrize("rows", [CHAT, TEXTS])
def test_same_windows_as_without_streaming(
    tmp_path: Path, rows: list[Any], options: dict[str, Any]
) -> None:
    options = {"max_seq_length": 16, **options}
    expected = load_training_data(TrainingText([rows], **options), byte_tokenizer(), tmp_path)
    assert not expected.is_streamed
    stream = streamed(TrainingText([rows], streaming=True, shuffle_buffer=0, **options))
    assert listed(stream) == in_memory(expected)
    assert listed(stream) == in_memory(expected)


@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_shuffled_by_seed_and_epoch(tmp_path: Path, buffer: int) -> None:
    expected = in_memory(load_training_data(TrainingText([EIGHTS], 8), byte_tokenizer(), tmp_path))

    def order(seed: int, epoch: int) -> list[int]:
        text = TrainingText([EIGHTS], 8, streaming=True, shuffle_buffer=buffer, seed=seed)
        stream = streamed(text)
        stream.set_epoch(epoch)
        windows = listed(stream)
        assert sorted(map(str, windows)) == sorted(map(str, expected))
        return [expected.index(window) for window in windows]

    first = order(0, 0)
    assert order(0, 0) == first
    # Nothing is given before it was read, with a buffer's worth of places between.
    assert all(row <= place + buffer for place, row in enumerate(first))
    if buffer == 1:
        assert first == sorted(first)
    else:
        assert len({tuple(order(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_no_more_is_read_than_asked_for(
    tokenizer: CountingTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 64)
    monkeypatch.setattr(encode_text, "_CHARACTERS_AT_ONCE", 256)
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 10_000)
    text = TrainingText(path, 8, streaming=True, shuffle_buffer=10)
    windows = iter(streamed(text, tokenizer))
    assert tokenizer.texts == []
    next(windows)
    assert sum(map(len, tokenizer.texts)) < 1000
    for _ in range(100):
        next(windows)
    assert 800 < sum(map(len, tokenizer.texts)) < 1800


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_windows_through_accelerate(num_processes: int) -> None:
    text = TrainingText([TEXTS], 8, streaming=True, shuffle_buffer=5)
    expected = listed(streamed(text))
    batch = 2
    shares = []
    for process in range(num_processes):
        shard: Any = IterableDatasetShard(
            streamed(text), batch, num_processes=num_processes, process_index=process
        )
        shard.set_epoch(0)
        shares.append(listed(shard))
    # Batches go to the processes in turn; the last are filled up from the beginning.
    together = [
        window
        for start in range(0, len(shares[0]), batch)
        for share in shares
        for window in share[start : start + batch]
    ]
    assert together[: len(expected)] == expected
    assert len(together) < len(expected) + batch * num_processes


def test_epoch_is_passed_on_by_accelerate() -> None:
    text = TrainingText([TEXTS], 8, streaming=True)
    alone = streamed(text)
    alone.set_epoch(3)
    shard: Any = IterableDatasetShard(streamed(text), 1)
    shard.set_epoch(3)
    assert listed(shard) == listed(alone)


def test_workers_share_the_windows() -> None:
    stream = streamed(TrainingText([TEXTS], 8, streaming=True, shuffle_buffer=3))
    batches: Any = DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(map(str, listed(batches))) == sorted(map(str, listed(stream)))


def test_trainer_takes_a_stream(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    data = load_training_data(TrainingText([CHAT], 16, streaming=True), byte_tokenizer())
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=data.dataset)
    # More steps than one pass has: it begins again.
    trainer.train()
    assert trainer.state.global_step == 12
    assert torch.isfinite(torch.tensor(trainer.state.log_history[-1]["train_loss"]))


def trained_on_ten(folder: Path, **changes: Any) -> tuple[list[int], dict[str, Tensor]]:
    """The windows that a training saw of a stream of ten in random order, and the weights."""
    text = TrainingText([[f"{n:011}" for n in range(10)]], LENGTH, streaming=True, shuffle_buffer=4)
    texts = TrainingTexts(load_training_data(text, byte_tokenizer()), training_data(5, 1))
    model, seen = tiny_model("llama"), []
    more = {name: changes.pop(name) for name in ("resume", "progress") if name in changes}

    def note(module: Any, _: Any, given: dict[str, Tensor]) -> None:
        if module.training:
            seen.extend(given["input_ids"][:, -2].tolist())

    model.register_forward_pre_hook(note, with_kwargs=True)
    training = options(keep_best=False, **changes)
    try:
        train(model, everything(model), folder, training, texts=texts, **more)
    except Interrupted:
        assert "progress" in more
    return seen, values_of(model)


@pytest.mark.parametrize(
    ("steps", "batch_size", "gradient_accumulation"), [(6, 4, 1), (6, 4, 2), (3, 2, 8)]
)
def test_steps_on_a_stream_are_whole_ones(
    tmp_path: Path, steps: int, batch_size: int, gradient_accumulation: int
) -> None:
    seen, _ = trained_on_ten(
        tmp_path,
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
    )
    assert len(seen) == steps * batch_size * gradient_accumulation
    passes = [seen[start : start + 10] for start in range(0, len(seen) - 9, 10)]
    assert all(len(set(windows)) == 10 for windows in passes)
    assert passes[0] != passes[1]


def test_a_stream_goes_on_where_it_was_in_a_later_pass(tmp_path: Path) -> None:
    seen, values = trained_on_ten(tmp_path / "whole", steps=12)
    trained_on_ten(tmp_path / "other", steps=12, progress=StopAt(9))
    rest, resumed = trained_on_ten(tmp_path / "other", steps=12, resume=True)
    assert rest == seen[16:]
    assert same_values(resumed, values)


def test_faults_of_a_stream() -> None:
    with pytest.raises(SecateurError, match=r"training source .* is neither a file nor a folder"):
        load_training_data(TrainingText("nothing.txt", streaming=True), byte_tokenizer())
    with pytest.raises(SecateurError, match=r"too short: 1 texts gives 4 tokens, .* needs 512"):
        list(streamed(TrainingText([["abc"]], streaming=True)))
    data = load_training_data(
        TrainingText([["abc"]], 2, streaming=True), byte_tokenizer(), vocab_size=100
    )
    with pytest.raises(SecateurError, match="the token id 102, but the model's vocabulary has 100"):
        list(data.dataset)  # type: ignore[call-overload]
    with pytest.raises(SecateurError, match="no windows can be held out of 1 texts: it is stream"):
        hold_out(data, num_windows=1)
