"""The example's training script: what it reads, what it saves, what it refuses."""

import gzip
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from example_scripts import load_example
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer import Typer
from typer.testing import CliRunner

NOUNS = ("king", "miller", "horse", "river", "garden", "letter", "captain", "candle")
VERBS = ("saw", "loved", "lost", "found", "followed")

script = load_example("train_small_model")
app = Typer()
app.command()(script.main)


def write_texts(folder: Path) -> Path:
    """Two files, one gzipped, of little sentences in documents of twenty."""
    rng = random.Random(0)
    documents = [
        " ".join(
            f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}."
            for _ in range(20)
        )
        for _ in range(60)
    ]
    folder.mkdir()
    separator = f"\n{script.DOCUMENT_SEPARATOR}\n"
    (folder / "a.txt").write_text(separator.join(documents[:30]), encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write(separator.join(documents[30:]))
    (folder / "notes.md").write_text("not a text to train on", encoding="utf-8")
    return folder


def tiny_shape(**changes: Any) -> Any:
    shape = {
        "hidden_size": 32,
        "num_blocks": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 64,
        "vocab_size": 300,
        "context_length": 64,
    }
    return script.ModelShape(**shape | changes)


def tiny_plan(**changes: Any) -> Any:
    plan = {
        "max_seq_length": 32,
        "max_steps": 20,
        "per_device_batch_size": 8,
        "learning_rate": 1e-2,
        "eval_share": 0.05,
        "save_steps": 10,
        "eval_steps": 10,
        "logging_steps": 10,
        "cpu": True,  # where a resumed training is the same bit for bit
    }
    return script.TrainingPlan(**plan | changes)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "books")


@pytest.fixture(scope="module")
def outcome(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("trained") / "model"
    return script.train(texts, output, tiny_shape(), tiny_plan())


def test_training_lowers_the_held_out_loss(outcome: Any) -> None:
    assert outcome.num_steps == 20
    assert outcome.validation_loss < outcome.initial_loss - 1.0


def test_result_reloads_with_the_loss_that_was_reported(outcome: Any, texts: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(outcome.output)
    tokenizer = AutoTokenizer.from_pretrained(outcome.output)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == outcome.num_parameters
    assert model.config.tie_word_embeddings
    assert model.config.use_cache
    assert model.config.vocab_size == len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids(list(script.SPECIAL_TOKENS)) == [0, 1, 2]
    assert GenerationConfig.from_pretrained(outcome.output).eos_token_id == 1
    assert not (outcome.output / ".saving").exists()

    encoded = script.encode_documents(script.read_documents(texts), tokenizer)
    _, held_out = script.split_windows(script.pack_windows(encoded, 32), 0.05)
    windows = held_out.tokens.long()
    with torch.no_grad():
        loss = model.float()(input_ids=windows, labels=windows).loss.item()
    assert loss == pytest.approx(outcome.validation_loss, abs=1e-4)

    prompt = tokenizer("The king", return_tensors="pt")
    continuation = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(continuation[0]).startswith("The king")


def test_resumed_training_ends_with_the_same_weights(
    outcome: Any, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "interrupted"
    kept = Path(script.CHECKPOINTS) / "checkpoint-10"
    shutil.copytree(outcome.output / kept, output / kept)
    resumed = script.train(texts, output, tiny_shape(), tiny_plan(), resume=True)
    assert resumed.num_steps == 20
    name = "model.safetensors"
    assert (resumed.output / name).read_bytes() == (outcome.output / name).read_bytes()


def test_training_goes_on_from_a_saved_model(outcome: Any, texts: Path, tmp_path: Path) -> None:
    plan = tiny_plan(max_steps=None, num_tokens=3 * 8 * 32 - 1)
    further = script.train(
        texts, tmp_path / "further", tiny_shape(), plan, init_from=outcome.output
    )
    assert further.num_steps == 3
    assert further.initial_loss == pytest.approx(outcome.validation_loss, abs=1e-4)


def test_documents_end_with_the_end_token_and_separators_are_no_text(texts: Path) -> None:
    documents = list(script.read_documents(texts))
    tokenizer = script.train_tokenizer(documents, 300, 64)
    encoded = list(script.encode_documents(documents, tokenizer))
    assert len(documents) == len(encoded) == 60
    assert not any(script.DOCUMENT_SEPARATOR in document for document in documents)
    for document, ids in zip(documents, encoded, strict=True):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids) == document + tokenizer.eos_token


def test_a_special_name_within_a_text_stays_text(texts: Path) -> None:
    tokenizer = script.train_tokenizer(script.read_documents(texts), 300, 64)
    (ids,) = script.encode_documents(["He wrote <|eos|> on the wall."], tokenizer)
    assert ids.count(tokenizer.eos_token_id) == 1


def test_separators_make_no_blank_documents() -> None:
    lines = ["one\n", "\n", "<|endoftext|>\r\n", "\n", "<|endoftext|>\n", "a <|endoftext|> b"]
    assert list(script.split_documents(lines)) == ["one", "", "a <|endoftext|> b"]


def test_windows_keep_the_order_of_the_tokens() -> None:
    windows = script.pack_windows([list(range(5)), list(range(5, 11))], 4)
    assert windows.dtype == torch.int32
    assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    train_windows, held_out = script.split_windows(windows, 0.01)
    assert len(train_windows) == len(held_out) == 1
    assert held_out[0]["labels"].tolist() == [4, 5, 6, 7]


def test_defaults_give_the_bundled_shape(texts: Path) -> None:
    tokenizer = script.train_tokenizer(["a few words"], 8192, 1024)
    model = script.build_model(script.ModelShape(), tokenizer)
    missing_rows = 8192 - len(tokenizer)
    assert model.num_parameters() + missing_rows * 256 == 8_392_960


def test_command_line_reports_loss_and_place(outcome: Any, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    options = "--hidden-size 32 --num-blocks 2 --num-heads 2 --num-kv-heads 1"
    options += " --intermediate-size 64 --max-seq-length 32 --max-steps 2 --cpu"
    arguments = [str(texts), str(output), "--tokenizer", str(outcome.output), *options.split()]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "validation loss" in result.output
    assert f"saved in {output}" in result.output


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"vocab_size": 100}, "vocab_size must be at least 259"),
        ({"hidden_size": 30, "num_heads": 4}, "hidden_size must be a multiple of 2 x num_heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads"),
        ({"num_blocks": 0}, "num_blocks must be positive, got 0"),
    ],
)
def test_impossible_shape_is_refused(
    texts: Path, tmp_path: Path, shape: dict[str, int], message: str
) -> None:
    with pytest.raises(script.TrainingError, match=message):
        script.train(texts, tmp_path / "out", tiny_shape(**shape), tiny_plan())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"num_tokens": 1000}, "num_tokens or max_steps, not both"),
        ({"max_steps": 0}, "max_steps must be positive, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"eval_share": 1.0}, "eval_share must lie between 0 and 1"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"max_seq_length": 1}, "max_seq_length must be at least 2"),
        ({"max_seq_length": 65}, "must not exceed the context of 64 tokens, got 65"),
    ],
)
def test_impossible_plan_is_refused(
    texts: Path, tmp_path: Path, plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(script.TrainingError, match=message):
        script.train(texts, tmp_path / "out", tiny_shape(), tiny_plan(**plan))
    assert not (tmp_path / "out").exists()


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(script.TrainingError, match="there is no folder"):
        script.train(tmp_path / "none", tmp_path / "out", tiny_shape(), tiny_plan())


def test_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>", encoding="utf-8")
    with pytest.raises(script.TrainingError, match=r"expected \*\.txt or \*\.txt\.gz files"):
        script.train(tmp_path, tmp_path / "out", tiny_shape(), tiny_plan())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("latin.txt", b"caf\xe9"),
        ("text.txt.gz", b"not gzip"),
        ("cut.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9]),
    ],
)
def test_unreadable_text_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(script.TrainingError, match=f"expected UTF-8 text in .*{name}"):
        script.train(tmp_path, tmp_path / "out", tiny_shape(), tiny_plan())


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A short tale.", encoding="utf-8")
    with pytest.raises(script.TrainingError, match="expected at least 64 tokens"):
        script.train(tmp_path, tmp_path / "out", tiny_shape(), tiny_plan())


def test_filled_output_is_refused(texts: Path) -> None:
    result = CliRunner().invoke(app, [str(texts), str(texts)])
    assert result.exit_code == 2
    assert "error: expected an empty or new folder" in result.output


def test_file_as_output_is_refused(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(script.TrainingError, match="is a file"):
        script.train(texts, tmp_path / "out", tiny_shape(), tiny_plan())


def test_resume_without_checkpoint_is_refused(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(script.TrainingError, match="expected a checkpoint to resume from"):
        script.train(texts, tmp_path / "out", tiny_shape(), tiny_plan(), resume=True)


@pytest.mark.parametrize("option", ["tokenizer_from", "init_from"])
def test_nothing_saved_is_refused(texts: Path, tmp_path: Path, option: str) -> None:
    arguments = (texts, tmp_path / "out", tiny_shape(), tiny_plan())
    with pytest.raises(script.TrainingError, match=r"expected a saved .* there is no folder"):
        script.train(*arguments, **{option: tmp_path / "none"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(script.TrainingError, match=r"expected a saved .* in .*empty"):
        script.train(*arguments, **{option: tmp_path / "empty"})


def test_tokenizer_and_model_to_start_from_exclude_each_other(
    outcome: Any, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(script.TrainingError, match="not both"):
        script.train(
            texts,
            tmp_path / "out",
            tiny_shape(),
            tiny_plan(),
            tokenizer_from=outcome.output,
            init_from=outcome.output,
        )


def test_tokenizer_larger_than_the_model_is_refused(outcome: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(outcome.output)
    larger = script.train_tokenizer(["The miller lost the candle in the garden."] * 9, 290, 64)
    script.check_vocabulary(model, larger)
    larger.add_tokens([f"word{number}" for number in range(20)])
    with pytest.raises(script.TrainingError, match="expected a tokenizer of at most 300 tokens"):
        script.check_vocabulary(model, larger)
