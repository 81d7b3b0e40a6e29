"""`secateur compress --stream` and `--dry-run`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file
from typer.testing import CliRunner

from secateur.checkpoint.load import load_model
from secateur.cli.app import app
from secateur.models.swap import compressed_modules
from secateur.report.record import load_report
from secateur.streaming.finished import BlockJournal


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["compress", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return str(result.exception)
    return result.output


def magnitude(model: Path, output: Path, *more: object) -> str:
    return run(model, "--output", output, "--method", "magnitude", "--pattern", "2:4", *more)


def test_streams_to_the_weights_of_the_whole_model(tiny: Path, tmp_path: Path) -> None:
    assert "wrote" in magnitude(tiny, tmp_path / "streamed", "--stream")
    assert "wrote" in magnitude(tiny, tmp_path / "whole", "--format", "dense")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    streamed = load_model(tmp_path / "streamed").model.state_dict()
    for name, weight in whole.items():
        assert torch.equal(streamed[name], weight), name
    before, after = load_report(tmp_path / "whole"), load_report(tmp_path / "streamed")
    assert after.verification == before.verification
    assert after.size == before.size


def test_dry_run_says_what_is_needed_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    text = magnitude(tiny, tmp_path / "out", "--dry-run")
    for need in ("hidden states", "largest block", "memory of the host", "disk", "time"):
        assert need in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stream", "--text", "some.txt"], "--text measures the whole model; leave it out"),
        (["--stream", "--format", "gguf"], "expected format auto, dense or compact, got 'gguf'"),
        (["--stream", "--trust-remote-code"], "own code: leave out --trust-remote-code, or"),
        (["--dry-run", "--resume"], "--dry-run does nothing that --resume could go on with"),
        (["--activations", "host"], "hidden states: add --stream or leave it out"),
        (["--stream", "--activations", "cloud"], "expected activations auto, device, host or file"),
        (["--stream", "--drop-blocks", "1"], "only a recipe of one prune or factor stage"),
        (["--stream", "--resume"], "there is nothing to resume"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert message in " ".join(magnitude(tiny, output, *arguments).split())
    assert not output.exists()


def test_a_score_of_the_whole_model_is_not_streamed(tiny: Path, tmp_path: Path) -> None:
    words = ["--output", tmp_path / "out", "--method", "gblm", "--pattern", "2:4", "--stream"]
    assert "gblm needs the gradient of the whole model" in run(tiny, *words)


def test_24_layers_are_streamed_into_a_compact_checkpoint(tiny: Path, tmp_path: Path) -> None:
    assert "wrote" in magnitude(tiny, tmp_path / "out", "--stream", "--format", "compact")
    assert len(compressed_modules(load_model(tmp_path / "out").model)) == 2 * 7


def test_factors_are_streamed(tiny: Path, tmp_path: Path) -> None:
    words = ["--output", tmp_path / "out", "--method", "svd", "--rank", 16, "--stream"]
    assert "needs" in run(tiny, *words[:-1], "--dry-run")
    assert "wrote" in run(tiny, *words)
    assert len(compressed_modules(load_model(tmp_path / "out").model)) == 2 * 7


def test_one_process_streams(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "streaming is done by one process" in magnitude(tiny, tmp_path / "out", "--stream")


@pytest.mark.parametrize(
    ("finished", "said"),
    [
        (0, "interrupted: nothing was written"),
        (1, "interrupted: finished blocks are kept, and the same command with --resume goes on"),
    ],
)
def test_whoever_interrupts_is_told_what_is_left(
    finished: int, said: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = BlockJournal.save, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) > finished:
            raise KeyboardInterrupt
        return save(*arguments, **options)

    monkeypatch.setattr(BlockJournal, "save", interrupted)
    assert said in magnitude(tiny, tmp_path / "out", "--stream")
    if finished:
        monkeypatch.undo()
        assert "wrote" in magnitude(tiny, tmp_path / "out", "--stream", "--resume")
