"""A training that is killed outright goes on from its last checkpoint, to the same end."""

import signal
import time
from pathlib import Path

import pytest
import torch
from forked import fork_python
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur.report.record import load_report
from secateur.report.training_record import RecoverRecord

WORDS = [f"w{number}" for number in range(40)]
STEPS = 60


def save_model(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(["<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_text(file: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(0, 6, (20_000,), generator=generator).cumsum(0) % len(WORDS)
    file.write_text(" ".join(WORDS[number] for number in numbers.tolist()), encoding="utf-8")


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    options = {
        "--data": folder / "text.txt",
        "--output": folder / output,
        "--method": "all",
        "--max-seq-length": 32,
        "--batch-size": 4,
        "--num-tokens": STEPS * 4 * 32,
        "--held-out": 8,
        "--eval-steps": 10,
        "--learning-rate": 0.003,
    }
    words = [str(word) for pair in options.items() for word in pair]
    return ["recover", str(folder / "model"), *words, *more]


def kill_after_a_checkpoint(folder: Path, output: str, step: int) -> None:
    state = folder / f".{output}.training" / "stage-1" / f"checkpoint-{step}" / "trainer_state.json"
    forked = fork_python("-m", "secateur", *arguments(folder, output))
    deadline = time.monotonic() + 200
    while not state.is_file():
        assert forked.process.is_alive(), forked.stderr.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    forked.process.kill()
    assert forked.wait(60).returncode == -signal.SIGKILL
    assert not (folder / output).exists()


def run(folder: Path, output: str, *more: str) -> RecoverRecord:
    done = CliRunner().invoke(app, arguments(folder, output, *more))
    assert done.exit_code == 0, done.exception
    stage = load_report(folder / output).stages[0]
    assert isinstance(stage, RecoverRecord)
    return stage


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model")
    save_text(tmp_path / "text.txt")
    whole = run(tmp_path, "whole")
    kill_after_a_checkpoint(tmp_path, "killed", 20)
    resumed = run(tmp_path, "killed", "--resume")
    losses = [(point.step, point.held_out_loss, point.train_loss) for point in resumed.run.points]
    assert losses == [(p.step, p.held_out_loss, p.train_loss) for p in whole.run.points]
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert whole.run.loss_after < whole.run.loss_before - 0.5
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "text.txt", "cache", "whole", "killed"}
