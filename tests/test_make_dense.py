"""Compact checkpoints made dense: what `compress` with format dense writes, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner
from word_tokenizer import word_tokenizer

from secateur import compress
from secateur.checkpoint.verify import verify_checkpoint
from secateur.cli.app import app
from secateur.errors import SecateurError, VerificationError
from secateur.make_dense import make_dense
from secateur.report.record import load_report

PRUNE = {"stage": "prune", "method": "magnitude", "pattern": "2:4", "ignore": ["re:.*down_proj$"]}
FACTOR = {"stage": "factor", "method": "svd", "rank": 16, "targets": ["re:.*down_proj$"]}
NO_ATTENTION = {"stage": "drop_blocks", "granularity": "attention", "blocks": [1]}


def compact(folder: Path, *stages: dict[str, Any], **options: Any) -> Path:
    model = tiny_model("llama").to(torch.bfloat16)
    options = {"checkpoint_format": "compact", **options}
    compress(model, list(stages), output=folder, **options)
    return folder


def test_it_is_what_compress_writes_densely(tmp_path: Path) -> None:
    source = compact(tmp_path / "compact", PRUNE, FACTOR)
    direct = compact(tmp_path / "direct", PRUNE, FACTOR, checkpoint_format="dense")
    report = make_dense(source, tmp_path / "dense")
    assert (tmp_path / "dense" / "model.safetensors").read_bytes() == (
        direct / "model.safetensors"
    ).read_bytes()
    assert all(check.passed for check in verify_checkpoint(tmp_path / "dense"))
    # As any tool loads it: nothing of ours is in the configuration.
    assert "secateur" not in (tmp_path / "dense" / "config.json").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    before, expected = load_report(source), load_report(direct)
    assert report == load_report(tmp_path / "dense")
    assert report.size == expected.size
    assert report.verification != before.verification
    assert report.size.num_bytes > before.size.num_bytes
    assert (report.created, report.stages) == (before.created, before.stages)
    for name in ("README.md", "secateur_recipe.yaml"):
        text = (tmp_path / "dense" / name).read_text()
        assert "import secateur" not in text
        assert "magnitude" in text
    assert not list(tmp_path.glob(".*"))


def test_the_command_keeps_the_tokenizer_and_tells_sizes(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    source = compact(tmp_path / "compact", PRUNE, tokenizer=tokenizer)
    arguments = ["convert", str(source), str(tmp_path / "dense"), "--format", "dense"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "dense" / "tokenizer.json").is_file()
    again = CliRunner().invoke(app, arguments)
    assert "is not empty" in str(again.exception)
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """Its proof would be lost: the dense one has a proof of its own."""
    source = compact(tmp_path / "compact", PRUNE)
    weights = source / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 0x40
    weights.write_bytes(raw)
    with pytest.raises(VerificationError, match=r"not as it was written: model\.safetensors"):
        make_dense(source, tmp_path / "dense")
    assert [path.name for path in tmp_path.iterdir()] == ["compact"]


def test_a_block_without_attention_is_refused(tmp_path: Path) -> None:
    source = compact(tmp_path / "compact", NO_ATTENTION, checkpoint_format="auto")
    with pytest.raises(SecateurError, match=r"is without model\.layers\.1\.self_attn: a dense"):
        make_dense(source, tmp_path / "dense")
    assert [path.name for path in tmp_path.iterdir()] == ["compact"]


def test_what_is_dense_already_is_refused(tmp_path: Path) -> None:
    source = compact(tmp_path / "first", PRUNE, checkpoint_format="dense")
    with pytest.raises(SecateurError, match="first is dense already"):
        make_dense(source, tmp_path / "dense")
    with pytest.raises(SecateurError, match="expected the folder of a checkpoint, got"):
        make_dense(tmp_path / "nothing", tmp_path / "dense")
    (tmp_path / "plain").mkdir()
    with pytest.raises(SecateurError, match=r"secateur_report\.json"):
        make_dense(tmp_path / "plain", tmp_path / "dense")
