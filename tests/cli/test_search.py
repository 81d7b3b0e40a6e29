"""`secateur search`: what it writes, how it goes on, and bad input."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner
from word_tokenizer import WORDS, save_tiny_llama

from secateur.cli.search import search_command
from secateur.errors import SecateurError
from secateur.recipe import FactorStage, load_recipe
from secateur.report.search_record import load_search, search_from_text
from secateur.search.journal import JOURNAL_FILE

APP = typer.Typer()
APP.command(name="search")(search_command)
SMALL = ("--fractions", "0.6,0.1", "--metric", "loss", "--blocks", "0-1", "--types", "o,mlp_out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("search") / "tiny")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("items") / "cloze.jsonl"
    lines = [{"text": " ".join(rng.choices(WORDS, k=6))} for _ in range(16)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(model: Path, items: Path | str, *arguments: object) -> str:
    result = CliRunner().invoke(APP, [str(model), "--task", str(items), *map(str, arguments)])
    if isinstance(result.exception, SecateurError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_writes_record_page_and_recipe(model: Path, items: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    text = run(model, items, *SMALL, "--output", output, "--prompt", "w1 w2", "--analyse", 1)
    record = load_search(output)
    assert record.model.source == "tiny"
    assert (record.task.metric, record.task.num_validation) == ("loss", 8)
    assert len(record.trials) == 2 * 2 * 2
    assert record.analysis is not None
    assert len(record.analysis.answers) == 2
    assert record.is_found
    (stage,) = load_recipe(output / "recipe.yaml").stages
    assert isinstance(stage, FactorStage)
    assert stage.method == "laser"
    chosen = [(cut.matrix, cut.block, cut.fraction) for cut in stage.interventions]
    assert chosen == [(c.matrix, c.block, c.fraction) for c in record.state("composed").cuts]
    assert "<title>LASER search: tiny on cloze</title>" in (output / "search.html").read_text()
    for words in ("Best single cut", "Chosen cuts, applied together", "Answers with", "wrote"):
        assert words in text
    assert sorted(path.name for path in output.iterdir()) == [
        "recipe.yaml",
        "search.html",
        "search.journal.jsonl",
        "search.json",
    ]


def test_prints_json_alone_and_writes_nothing_unasked(
    model: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = search_from_text(run(model, items, *SMALL, "--json", "--limit", 6, "--filter", 1))
    assert record.task.num_items == 6
    assert len(record.ranking) == 4
    assert len(record.trials) == 2
    assert list(tmp_path.iterdir()) == []


def test_goes_on_or_begins_again_only_when_told(model: Path, items: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(model, items, *SMALL, "--output", output, "--resume")
    first = load_search(output)
    with pytest.raises(SecateurError, match="holds a search: --resume goes on with it, --over"):
        run(model, items, *SMALL, "--output", output)
    journal = (output / JOURNAL_FILE).read_bytes()
    run(model, items, *SMALL, "--output", output, "--resume")
    assert load_search(output).trials == first.trials
    assert (output / JOURNAL_FILE).read_bytes() == journal
    with pytest.raises(SecateurError, match="seed was 0 and is 1"):
        run(model, items, *SMALL, "--output", output, "--resume", "--seed", 1)
    run(model, items, *SMALL, "--output", output, "--overwrite", "--seed", 1)
    assert load_search(output).options["seed"] == 1


def test_nothing_found_leaves_no_recipe(model: Path, items: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "recipe.yaml").write_text("an older one")
    # Rank 28 of 32 of one matrix: no answer becomes right.
    grid = ("--fractions", "0.9", "--types", "q", "--blocks", "1", "--metric", "accuracy")
    text = run(model, items, *grid, "--output", output, "--overwrite")
    assert not load_search(output).is_found
    assert not (output / "recipe.yaml").exists()
    assert "Nothing was chosen: no recipe." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "f1"], "expected a metric out of accuracy, generation, loss, but got 'f1'"),
        (["--types", "q,w"], "expected matrix types out of q, k, v, .* got 'w'"),
        (["--blocks", "0,2-1"], "expected --blocks such as 0,5-7, but got '0,2-1'"),
        (["--blocks", "a"], "expected --blocks such as 0,5-7, but got 'a'"),
        (["--blocks", "1-5"], "expected blocks from 0 to 1, got 2, 3, 4, 5"),
        (["--fractions", "0.5,x"], "expected --fractions such as 0.9,0.1,0.01, but got '0.5,x'"),
        (["--fractions", "1.5"], "expected kept fractions above 0 and below 1, got 1.5"),
        (["--filter", "0"], "expected filter of at least 1, got 0"),
        (["--compose", "some"], "expected compose out of improving, all, none"),
        (["--limit", "1"], "expected at least 2 items in task cloze"),
        (["--resume"], "--resume and --overwrite need --output DIR"),
        (["--overwrite", "--resume", "--output", "x"], "give either --resume or --overwrite"),
        (["--device", "abacus"], "device abacus cannot be used here"),
    ],
)
def test_bad_input(arguments: list[str], message: str, model: Path, items: Path) -> None:
    with pytest.raises(SecateurError, match=message):
        run(model, items, *arguments)


def test_bad_places_and_files(model: Path, items: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SecateurError, match=r"expected a folder to write to, but .* is a file"):
        run(model, items, "--output", file)
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(SecateurError, match=r"has no search\.journal\.jsonl to go on with"):
        run(model, items, "--output", tmp_path, "--resume")
    no_answer: Any = {"context": "w1", "choices": ["w2", "w3"]}
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(no_answer))
    output = tmp_path / "out"
    with pytest.raises(SecateurError, match="line 1: expected an object with the keys context"):
        run(model, broken, "--output", output)
    assert not output.exists()
    with pytest.raises(SecateurError, match=r"no_such_task: no such file here|names of lm-eval"):
        run(model, "no_such_task", *SMALL[:2], "--output", output)
    assert not output.exists()
