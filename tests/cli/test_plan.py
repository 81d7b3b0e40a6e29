"""`secateur plan`: what it prints and writes, and bad input."""

import json
import random
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner
from word_tokenizer import WORDS, save_tiny_llama

from secateur.cli.plan import parse_bytes, plan_command
from secateur.errors import SecateurError
from secateur.recipe import load_recipe, recipe_from_dict

APP = typer.Typer()
APP.command(name="plan")(plan_command)
SMALL = ("--num-samples", "8", "--max-seq-length", "16", "--rounds", "1", "--prefill-length", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("plan") / "tiny", num_blocks=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=400)))
    return path


def run(model: Path, text: Path, *arguments: object) -> str:
    options = [str(model), "--calibration", str(text), *SMALL, *map(str, arguments)]
    result = CliRunner().invoke(APP, options, env={"COLUMNS": "200"})
    if isinstance(result.exception, SecateurError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_writes_the_recipe_it_prints(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "plan.yaml"
    printed = run(
        model, text, "--memory", "110KB", "--evaluation-text", text, "--output", output, "--json"
    )
    values = json.loads(printed)
    assert load_recipe(output) == recipe_from_dict(values["recipe"])
    head = output.read_text().splitlines()
    words = "at most 110,000 bytes of weights, prefill, batch 1, length 8, on cpu"
    assert head[0] == f"# secateur plan of tiny: {words}"
    assert head[1].startswith("# predicted: ")
    assert head[2].startswith("# measured: ")
    assert values["rows"][1]["measured"]["perplexity"] > 1


def test_prints_tables(model: Path, text: Path) -> None:
    printed = run(model, text, "--memory", "130 kB", "--no-compare")
    assert "dense" in printed
    assert "plan" in printed
    assert "only" not in printed
    predicted = run(model, text, "--memory", "130000", "--no-build", "--methods", "drop")
    assert "without" in predicted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"expected exactly one limit: a target speed-up \(--target-speedup\)"),
        (("--latency", "5", "--memory", "1GB"), "expected exactly one"),
        (("--target-speedup", "0.9"), r"expected a target speed-up above 1, got 0\.9"),
        (("--memory", "much"), "expected --memory such as 10GB or 640MB, got 'much'"),
        (("--memory", "1.2.3GB"), "expected --memory such as"),
        (("--memory", "1PB"), "expected --memory such as"),
        (("--latency", "5", "--methods", "dense,laser"), "got 'laser'"),
        (("--latency", "5", "--batch", "0"), "expected a batch, a prefill length and a context"),
        (("--latency", "5", "--rounds", "0"), "expected at least 1 round"),
        (("--memory", "1KB"), "the smallest plan's"),
    ],
)
def test_bad_input(model: Path, text: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        run(model, text, *arguments)


def test_an_output_is_not_overwritten(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan.yaml"
    output.write_text("mine")
    with pytest.raises(SecateurError, match="is there already: --overwrite replaces it"):
        run(model, text, "--memory", "110KB", "--output", output)
    assert output.read_text() == "mine"
    with pytest.raises(SecateurError, match=r"expected a file for --output, but .* is a folder"):
        run(model, text, "--memory", "110KB", "--output", tmp_path)


def test_no_older_recipe_is_left_where_nothing_is_to_be_done(
    model: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "plan.yaml"
    output.write_text("of another limit")
    options = ("--memory", "1GB", "--no-build", "--methods", "drop")
    printed = run(model, text, *options, "--output", output, "--overwrite")
    assert "The dense model keeps to the limit: there is no recipe to write." in printed
    assert not output.exists()


def test_sizes() -> None:
    assert parse_bytes("10GB") == 10**10
    assert parse_bytes(" 1.5 mb ") == 1_500_000
    assert parse_bytes("77") == 77
