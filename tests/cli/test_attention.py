"""`secateur attention`: what it prints and writes, what it finds, and bad input."""

import inspect
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from families import tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner
from word_tokenizer import WORDS, save_tiny_llama

from secateur.calibration.data import load_calibration
from secateur.cli.attention import attention_command
from secateur.depth.attention_rank import LAZY_THRESHOLD
from secateur.errors import SecateurError
from secateur.lazy_attention import analyse_attention
from secateur.report.attention_record import attention_from_text

APP = typer.Typer()
APP.command(name="attention")(attention_command)
SMALL = ("--max-seq-length", 12, "--num-samples", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("attention") / "tiny", num_blocks=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=300)))
    return path


def run(model: Path, text: Path, *arguments: object) -> str:
    result = CliRunner().invoke(APP, [str(model), "--text", str(text), *map(str, arguments)])
    if isinstance(result.exception, SecateurError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_figures_are_those_of_the_models_attention(model: Path, text: Path) -> None:
    record = attention_from_text(run(model, text, *SMALL, "--seed", 4, "--json"))
    own = tiny_model("llama", num_blocks=3)
    own.set_attn_implementation("eager")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokens = load_calibration(text, tokenizer, num_samples=3, max_seq_length=12, seed=4)
    with torch.no_grad():
        ids = torch.stack(tokens.samples)
        attentions = own(input_ids=ids, output_attentions=True).attentions
    for block, attention in zip(record.blocks, attentions, strict=True):
        squares = np.linalg.svd(attention.double().numpy(), compute_uv=False) ** 2
        shares = squares.cumsum(-1) / squares.sum(-1, keepdims=True)
        assert block.ranks == pytest.approx(((shares < 0.9).sum(-1) + 1).mean(0))
        masses = np.sort(attention.double().numpy().sum(-2), axis=-1)[..., ::-1].cumsum(-1) / 12
        assert block.masses == pytest.approx(((masses < 0.9).sum(-1) + 1).mean(0))
    assert record.text.tokens_sha256 == tokens.sha256()
    assert (record.text.source, record.text.num_samples, record.text.seed) == ("words.txt", 3, 4)
    assert (record.model.source, record.model.num_blocks) == ("tiny", 3)
    even = np.tril(np.ones((12, 12))) / np.arange(1, 13)[:, None]
    assert record.even_mass == 1 + (even.sum(0).cumsum() < 0.9 * 12).sum()
    squares = np.linalg.svd(even, compute_uv=False) ** 2
    assert record.even_rank == 1 + (squares.cumsum() < 0.9 * squares.sum()).sum()


def test_equal_arguments_give_equal_figures(model: Path, text: Path) -> None:
    first, again, other = (
        attention_from_text(run(model, text, *SMALL, "--json", "--seed", seed))
        for seed in (0, 0, 1)
    )
    assert first.blocks == again.blocks
    assert first.text.tokens_sha256 != other.text.tokens_sha256


def test_prints_a_table_and_writes_a_page(model: Path, text: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    printed = run(model, text, *SMALL, "--html", page, "--threshold", 100)
    words = " ".join(printed.split())
    assert "Blocks 0 to 2 are lazy" in words
    assert "mean rank below 100" in words
    assert "tiny read 3 windows of 12 tokens, 4 heads a block." in words
    assert "Highest rank" in words
    assert words.count(" lazy ") >= 3
    assert f"wrote {page}" in printed
    assert "<title>Attention of tiny</title>" in page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_writes_nothing_unasked(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "No block is lazy" in run(model, text, *SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_model_made_lazy_is_found_out(text: Path) -> None:
    lazy = tiny_model("gpt2", num_blocks=3)
    look_at_the_first_token_only(lazy, block=1)
    ids = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))
    record = analyse_attention(lazy, None, ids)
    assert record.lazy == (1,)
    assert record.blocks[1].ranks == record.blocks[1].masses == (1.0,) * 4
    assert analyse_attention(tiny_model("gpt2", num_blocks=3), None, ids).lazy == ()


def look_at_the_first_token_only(model: PreTrainedModel, block: int) -> None:
    """In one block: equal queries, and keys that read the feature which marks position 0."""
    projection = model.transformer.h[block].attn.c_attn
    with torch.no_grad():
        model.transformer.wpe.weight[0] = 0
        model.transformer.wpe.weight[0, 7] = 100
        projection.weight[:, :64] = 0
        projection.bias[:64] = 0
        projection.bias[:32] = 1
        projection.weight[7, 32:64] = 20


def test_the_threshold_shown_is_the_algorithms() -> None:
    default = inspect.signature(attention_command).parameters["threshold"].default
    assert default == LAZY_THRESHOLD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "1"], "expected a threshold above 1, .* got 1"),
        (["--num-samples", "0"], "at least 1 and max_seq_length of at least 2, got 0 and 256"),
        (
            ["--max-seq-length", "129"],
            "windows of 129 tokens do not fit the model's context of 128",
        ),
        (["--max-seq-length", "301"], r"words\.txt gives 300 tokens, but one window .* needs 301"),
        (["--device", "abacus"], "device abacus cannot be used here"),
    ],
)
def test_bad_input(arguments: list[str], message: str, model: Path, text: Path) -> None:
    with pytest.raises(SecateurError, match=message):
        run(model, text, *arguments)


def test_bad_files(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"none\.txt is neither a file nor a folder"):
        run(model, tmp_path / "none.txt")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecateurError, match="is not UTF-8 text"):
        run(model, binary)


def test_tokens_of_another_model_are_refused() -> None:
    with pytest.raises(SecateurError, match="expected token ids from 0 to 127"):
        analyse_attention(tiny_model("gpt2"), None, torch.full((1, 4), 128))
