"""The recover stage as people use it: through `compress_with_report` and the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from rich.console import Console
from small_trainings import Interrupted, StopAt, same_values, values_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from told import Told
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import secateur.training.adapters as adapters_module
from secateur import compress_with_report
from secateur.ancestry import ancestry_of
from secateur.checkpoint.load import load_model
from secateur.checkpoint.verify import verify_checkpoint
from secateur.cli.app import app
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.inventory import take_inventory
from secateur.models.swap import compressed_modules, to_dense
from secateur.modules import LowRankLinear, Sparse24Linear
from secateur.prepare_training import load_texts
from secateur.progress import SilentProgress
from secateur.recipe import Training
from secateur.report.page import render_report
from secateur.report.record import Report, load_report
from secateur.report.table import report_table
from secateur.report.training_record import RecoverRecord
from secateur.training.evaluate import held_out_loss

PRUNE = {"stage": "prune", "method": "magnitude", "pattern": "2:4"}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of the words w3 to w127, whose ids they are."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB_SIZE)}}
    core = Tokenizer(WordLevel(vocabulary, unk_token="w3"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="w3", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of few words, so that there is something to learn."""
    generator = torch.Generator().manual_seed(3)
    path = tmp_path_factory.mktemp("text") / "train.jsonl"
    rows = [torch.randint(3, 11, (40,), generator=generator).tolist() for _ in range(12)]
    path.write_text(
        "".join(json.dumps({"text": " ".join(f"w{i}" for i in r)}) + "\n" for r in rows)
    )
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


def dense_folder(
    path: Path, family: str = "llama", blocks: int = 2, dtype: str = "float32"
) -> Path:
    model = tiny_model(family, blocks).to(getattr(torch, dtype))
    model.save_pretrained(path)
    words().save_pretrained(path)
    return path


def training(text: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "data": [str(text)],
        "max_seq_length": 12,
        "num_tokens": 6 * 2 * 12,
        "batch_size": 2,
        "held_out": 5,
        "eval_steps": 3,
        "learning_rate": 1e-2,
    }
    return {**values, **changes}


def recover(text: Path, method: str = "gates", **changes: Any) -> dict[str, Any]:
    stage_options = {"near_cut", "teacher", "last_blocks", "lora_rank", "lora_alpha"}
    stage = {name: changes.pop(name) for name in stage_options & changes.keys()}
    return {"stage": "recover", "method": method, **stage, "training": training(text, **changes)}


def run(
    model: nn.Module | Path, *stages: dict[str, Any], **options: Any
) -> tuple[Any, Report, RecoverRecord]:
    if isinstance(model, nn.Module):
        options.setdefault("tokenizer", words())
    options.setdefault("progress", SilentProgress())
    found, report = compress_with_report(model, {"stages": list(stages)}, device="cpu", **options)
    record = report.stages[-1]
    assert isinstance(record, RecoverRecord)
    return found, report, record


def beside(output: Path) -> list[str]:
    return sorted(entry.name for entry in output.parent.iterdir() if entry.name.startswith("."))


def assert_verified(output: Path) -> None:
    checks = verify_checkpoint(output)
    assert checks
    assert all(check.passed for check in checks), checks


def is_two_of_four(weight: Tensor) -> bool:
    kept = (weight != 0).reshape(weight.shape[0], -1, 4).sum(-1)
    return bool((kept == 2).all())


# Prune, then recover.


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("checkpoint_format", ["dense", "compact"])
def test_prune_then_recover_gates(
    tmp_path: Path, text: Path, family: str, checkpoint_format: str
) -> None:
    folder = dense_folder(tmp_path / "dense", family, dtype="bfloat16")
    output = tmp_path / "out"
    model, report, record = run(
        folder, PRUNE, recover(text), output=output, checkpoint_format=checkpoint_format
    )
    assert_verified(output)
    assert record.run.loss_after < record.run.loss_before
    assert record.method == "gates"
    assert beside(output) == []
    reloaded = load_model(output, accept_compact=True).model
    for found in (model, reloaded):
        names = to_dense(found)
        assert bool(names) == (checkpoint_format == "compact")
        assert all(is_two_of_four(site.weight) for site in take_inventory(found).all_sites)
    assert same_values(values_of(model), values_of(reloaded))
    assert load_report(output) == report
    assert record.dense_loss is not None
    # The dense model is the one before the prune stage, on the same windows.
    dense = load_model(folder)
    texts = load_texts(dense, Training(**_plain(training(text))), None)
    assert record.dense_loss == held_out_loss(dense.model, texts.held_out, 2)
    assert record.run.loss_after == pytest.approx(
        held_out_loss(reloaded, texts.held_out, 2), rel=1e-2
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "data": tuple(values["data"])}


def test_what_was_not_trained_is_as_it_was_pruned(tmp_path: Path, text: Path) -> None:
    folder = dense_folder(tmp_path / "dense", dtype="bfloat16")
    pruned, _ = compress_with_report(folder, {"stages": [PRUNE]})
    model, _, _ = run(folder, PRUNE, recover(text))
    before, after = values_of(pruned), values_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".mlp." in name}


@pytest.mark.parametrize("in_one_recipe", [True, False])
def test_few_zeros_stay_where_a_report_tells_of_them(
    tmp_path: Path, text: Path, in_one_recipe: bool
) -> None:
    model: Any = dense_folder(tmp_path / "dense", blocks=3)
    few = {"stage": "prune", "method": "magnitude", "sparsity": 0.009}
    # Blocks that are dropped afterwards change the names of those behind them.
    before = [few, {"stage": "drop_blocks", "blocks": [0]}]
    if not in_one_recipe:
        compress_with_report(model, {"stages": before}, output=tmp_path / "pruned")
        model, before = tmp_path / "pruned", []
    zeros, _ = compress_with_report(model, {"stages": before}) if before else (None, None)
    zeros = load_model(model).model if zeros is None else zeros
    trained, _, _ = run(model, *before, recover(text, "linears"), output=tmp_path / "out")
    assert_verified(tmp_path / "out")
    for pruned, site in zip(
        take_inventory(zeros).all_sites, take_inventory(trained).all_sites, strict=True
    ):
        assert bool((pruned.weight == 0).any())
        assert torch.equal(pruned.weight == 0, site.weight == 0), site.name
    if not in_one_recipe:
        with pytest.raises(SecateurError, match="method lora adds a dense product to each matrix"):
            run(model, recover(text, "lora"))


def test_a_report_tells_of_the_training(tmp_path: Path, text: Path) -> None:
    model = tiny_model("llama")
    _, report, record = run(model, PRUNE, recover(text), output=tmp_path / "out")
    run_ = record.run
    page = render_report(report)
    for value in (run_.loss_before, run_.loss_after, record.dense_loss):
        assert f"{value:.3f}" in page
    assert f"{run_.num_trained_parameters:,} parameters trained by gates" in page
    assert "Loss on held-out text by tokens trained on" in page
    shown = _printed(report)
    for point in run_.points:
        assert f"{point.held_out_loss:.4f}" in shown
    assert "read training texts" in report.seconds


def _printed(report: Report) -> str:
    console = Console(width=160, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(report_table(report))
    return capture.get()


def test_what_was_cut_is_told_before_training(tmp_path: Path) -> None:
    path, told = tmp_path / "chat.jsonl", Told()
    sizes = [4] * 20 + [40] * 3
    rows = [{"prompt": "w3", "response": " ".join(["w4"] * size)} for size in sizes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, record = run(dense_folder(tmp_path / "dense"), recover(path), progress=told)
    (remark,) = record.run.data.remarks
    assert remark.startswith("examples cut at the end of a window: 3 of 23 in ")
    tasks = [task for task, _, _ in told.tasks]
    place = tasks.index("read training texts")
    assert place < tasks.index("recover by gates")
    assert told.tasks[place] == ("read training texts", 1, [remark])
    assert not told.unfinished()


# Dropped blocks.


def test_near_cut_trains_the_blocks_beside_it(tmp_path: Path, text: Path) -> None:
    dropped = {"stage": "drop_blocks", "blocks": [2, 3]}
    short, _ = compress_with_report(tiny_model("llama", 6), {"stages": [dropped]})
    stage = recover(text, near_cut=1)
    model, _, _ = run(tiny_model("llama", 6), dropped, stage, output=tmp_path / "out")
    before, after = values_of(short), values_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        n for n in before if n.startswith(("model.layers.1.mlp", "model.layers.2.mlp"))
    }


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_written_folder_knows_its_cuts(tmp_path: Path, text: Path, is_gone: bool) -> None:
    folder = dense_folder(tmp_path / "dense", blocks=6)
    short = tmp_path / "short"
    compress_with_report(
        folder, {"stages": [{"stage": "drop_blocks", "blocks": [2, 3]}]}, output=short
    )
    if is_gone:
        shutil.rmtree(folder)
    model, _, record = run(short, recover(text, near_cut=1), output=tmp_path / "out")
    before, after = values_of(load_model(short).model), values_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        n for n in before if n.startswith(("model.layers.1.mlp", "model.layers.2.mlp"))
    }
    if is_gone:
        assert record.dense_loss is None
        assert record.warnings[0].startswith(f"the dense model ({folder}) is not there: nothing is")
        return
    dense = load_model(folder)
    texts = load_texts(dense, Training(**_plain(training(text))), None)
    assert record.dense_loss == held_out_loss(dense.model, texts.held_out, 2)
    assert not any("is not there" in warning for warning in record.warnings)


def test_a_compressed_ancestor_is_not_the_dense_model(tmp_path: Path, text: Path) -> None:
    folder = dense_folder(tmp_path / "dense")
    compress_with_report(folder, {"stages": [PRUNE]}, output=tmp_path / "first")
    factor = {"stage": "factor", "method": "svd", "rank": 16, "write": "dense"}
    compress_with_report(tmp_path / "first", {"stages": [factor]}, output=tmp_path / "second")
    shutil.rmtree(folder)
    _, _, record = run(tmp_path / "second", recover(text), output=tmp_path / "third")
    assert record.dense_loss is None
    named = recover(text, teacher=str(tmp_path / "first"))
    _, _, record = run(tmp_path / "second", named, output=tmp_path / "fourth")
    assert record.dense_loss is not None
    assert not any("is not there" in warning for warning in record.warnings)


def test_the_dense_model_is_found_from_elsewhere(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, blocks in (("here", 2), ("there", 3)):
        dense_folder(tmp_path / place / "dense", blocks=blocks)
    monkeypatch.chdir(tmp_path / "here")
    _, report = compress_with_report("dense", {"stages": [PRUNE]}, output="pruned")
    assert report.model.source == "dense"
    monkeypatch.chdir(tmp_path / "there")
    short = load_model(tmp_path / "here" / "pruned")
    assert ancestry_of(short).dense_folder == tmp_path / "here" / "dense"


def test_near_cut_without_a_cut(tmp_path: Path, text: Path) -> None:
    with pytest.raises(SecateurError, match="expected a model with dropped blocks for near_cut"):
        run(tiny_model("llama"), recover(text, near_cut=1), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert beside(tmp_path / "out") == []


@pytest.mark.parametrize("from_folder", [False, True])
def test_blocks_learn_what_the_dropped_ones_did(
    tmp_path: Path, text: Path, from_folder: bool
) -> None:
    drop = {"stage": "drop_blocks", "blocks": [1, 2]}
    stage = recover(text, "linears", loss="distillation", distillation_weight=0.5, block_weight=1.0)
    if from_folder:
        folder = dense_folder(tmp_path / "dense", blocks=4)
        compress_with_report(folder, {"stages": [drop]}, output=tmp_path / "short")
        _, _, record = run(tmp_path / "short", stage, output=tmp_path / "out")
    else:
        _, _, record = run(tiny_model("llama", 4), drop, stage)
    trained = [point.train_loss for point in record.run.points[1:]]
    assert trained[-1] is not None
    assert trained[0] is not None
    assert trained[-1] < trained[0]


def test_blocks_of_a_model_whose_source_is_gone(tmp_path: Path, text: Path) -> None:
    """The model itself is what is left to learn from."""
    folder = dense_folder(tmp_path / "dense", blocks=6)
    short = tmp_path / "short"
    compress_with_report(
        folder, {"stages": [{"stage": "drop_blocks", "blocks": [2, 3]}]}, output=short
    )
    shutil.rmtree(folder)
    _, _, record = run(short, recover(text, block_weight=1.0), output=tmp_path / "out")
    assert record.run.ending == "finished"
    assert "what was learnt from is the model as it came in" in record.warnings[0]


# The dense model.


def test_the_teacher_that_is_named(tmp_path: Path, text: Path) -> None:
    other = tiny_model("llama", 3, seed=5)
    other.save_pretrained(tmp_path / "teacher")
    model = tiny_model("llama")
    stage = recover(text, loss="distillation", teacher=str(tmp_path / "teacher"))
    _, _, record = run(model, stage)
    dense = load_model(dense_folder(tmp_path / "dense"))
    texts = load_texts(dense, Training(**_plain(training(text))), None)
    assert record.dense_loss == held_out_loss(other, texts.held_out, 2)


@pytest.mark.parametrize("made", ["compact", "factored"])
def test_a_model_recovered_twice_aims_at_the_first(tmp_path: Path, text: Path, made: str) -> None:
    folder = dense_folder(tmp_path / "dense", dtype="bfloat16")
    factor = {"stage": "factor", "method": "svd", "rank": 16}
    first = tmp_path / "first"
    recipe = {"stages": [PRUNE if made == "compact" else factor]}
    compress_with_report(folder, recipe, output=first, checkpoint_format="compact")
    losses = set()
    for source, output in ((first, tmp_path / "second"), (tmp_path / "second", tmp_path / "third")):
        _, _, record = run(source, recover(text), output=output)
        losses.add(record.dense_loss)
        assert_verified(output)
    assert len(losses) == 1


def test_teacher_errors(tmp_path: Path, text: Path) -> None:
    for name, config in (("vocabulary", {"vocab_size": 130}), ("width", {"hidden_size": 48})):
        shape = tiny_model("llama").config
        shape.update(config)
        AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / name)

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(SecateurError, match=message):
            run(tiny_model("llama"), recover(text, **changes), output=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert beside(tmp_path / "out") == []

    message = "expected a teacher with the model's vocabulary of 128 tokens, but .* has 130"
    refused(message, teacher=str(tmp_path / "vocabulary"), loss="distillation")
    message = "block_weight needs a teacher .* 2 blocks of width 32, but .* 2 of width 48"
    refused(message, teacher=str(tmp_path / "width"), block_weight=1.0)
    tiny_model("llama", 3).save_pretrained(tmp_path / "blocks")
    message = "block_weight needs a teacher .* 2 blocks of width 32, but .* 3 of width 32"
    refused(message, teacher=str(tmp_path / "blocks"), block_weight=1.0)
    refused("nowhere", teacher=str(tmp_path / "nowhere"))


# Compact and factored input.


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_compact_input_stays_compact(tmp_path: Path, text: Path, dtype: str) -> None:
    folder = dense_folder(tmp_path / "dense", dtype=dtype)
    compact = tmp_path / "compact"
    compress_with_report(folder, {"stages": [PRUNE]}, output=compact, checkpoint_format="compact")
    model, _, record = run(compact, recover(text), output=tmp_path / "out")
    assert record.run.num_trained_parameters == 2 * 3 * 64 * 32 // 2
    assert record.run.loss_after < record.run.loss_before
    assert_verified(tmp_path / "out")
    layers = compressed_modules(model)
    assert len(layers) == 14
    assert all(isinstance(layer, Sparse24Linear) for layer in layers.values())
    before = load_model(compact, accept_compact=True).model
    after = load_model(tmp_path / "out", accept_compact=True).model
    to_dense(before)
    to_dense(after)
    for site, old in zip(
        take_inventory(after).all_sites, take_inventory(before).all_sites, strict=True
    ):
        assert is_two_of_four(site.weight)
        assert torch.equal(site.weight == 0, old.weight == 0)
        assert torch.equal(site.weight, old.weight) == (".mlp." not in site.name)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(compressed_modules(plain)) == 14


@pytest.mark.parametrize("in_one_recipe", [False, True])
def test_factors_stay_factors(tmp_path: Path, text: Path, in_one_recipe: bool) -> None:
    factor = {"stage": "factor", "method": "svd", "rank": 16}
    output = tmp_path / "out"
    stage = recover(text, "linears")
    if in_one_recipe:
        model, _, record = run(tiny_model("llama"), factor, stage, output=output)
    else:
        first = tmp_path / "first"
        folder = dense_folder(tmp_path / "dense")
        compress_with_report(folder, {"stages": [factor]}, output=first)
        model, _, record = run(first, stage, output=output)
    layers = compressed_modules(model)
    assert len(layers) == 14
    assert all(isinstance(layer, LowRankLinear) for layer in layers.values())
    assert record.run.loss_after < record.run.loss_before
    assert_verified(output)
    assert beside(output) == []


# Adapters.


def test_adapters_are_merged(tmp_path: Path, text: Path) -> None:
    model, before = tiny_model("llama"), values_of(tiny_model("llama"))
    found, _, record = run(model, recover(text, "lora", lora_rank=2), output=tmp_path / "out")
    assert found is model
    assert record.run.num_trained_parameters == sum(
        2 * sum(before[name].shape) for name in before if name.endswith("_proj.weight")
    )
    after = values_of(model)
    for name, item in after.items():
        assert torch.equal(item, before[name]) == (not name.endswith("_proj.weight"))
        if name.endswith("_proj.weight"):
            change = (item - before[name]).double()
            assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2
    assert_verified(tmp_path / "out")


def test_adapters_are_refused_where_zeros_are(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"

    def refused(message: str, model: nn.Module | Path, *stages: dict[str, Any]) -> None:
        with pytest.raises(SecateurError, match=message):
            run(model, *stages, output=output)
        assert not output.exists()
        assert beside(output) == []

    lora = recover(text, "lora")
    refused("would fill the zeros of the prune stage before it", tiny_model("llama"), PRUNE, lora)
    folder = dense_folder(tmp_path / "dense", dtype="bfloat16")
    for form in ("dense", "compact"):
        pruned = tmp_path / form / "pruned"
        compress_with_report(folder, {"stages": [PRUNE]}, output=pruned, checkpoint_format=form)
    message = "14 of them are pruned, such as model.layers.0.self_attn.q_proj"
    refused(message, tmp_path / "dense" / "pruned", lora)
    refused("expected a linear layer to train", tmp_path / "compact" / "pruned", lora)

    def absent() -> None:
        raise SecateurError("needs peft")

    monkeypatch.setattr("secateur.stages.recover.require_peft", absent)
    refused("needs peft", folder, lora)
    assert adapters_module.require_peft() is not None


# Errors before anything is changed.


def test_errors(tmp_path: Path, text: Path) -> None:
    model, before = tiny_model("llama"), values_of(tiny_model("llama"))
    output = tmp_path / "out"

    def refused(message: str, stage: dict[str, Any], **options: Any) -> None:
        with pytest.raises(SecateurError, match=message):
            run(model, PRUNE, stage, output=output, **options)
        assert same_values(values_of(model), before)
        assert not output.exists()
        assert beside(output) == []

    message = "training on text needs the model's tokenizer; give `tokenizer`"
    refused(message, recover(text), tokenizer=None)
    message = "windows of 129 tokens do not fit the model's context of 128"
    refused(message, recover(text, max_seq_length=129))
    refused("nothing.txt", recover(tmp_path / "nothing.txt"))
    message = "expected at least 5 blocks to train, the model has 2"
    refused(message, recover(text, "head_and_last_blocks", last_blocks=5))
    with pytest.raises(SecateurError, match=r"nothing\.txt"):
        run(model, recover(text), recover(tmp_path / "nothing.txt"), output=output)
    assert beside(output) == []
    with pytest.raises(SecateurError, match="resume goes by checkpoints beside the output"):
        run(model, recover(text), resume=True)
    prune = {"stage": "prune", "method": "magnitude", "pattern": "2:4"}
    with pytest.raises(SecateurError, match="resume goes on with training stages, and the recipe"):
        run(model, prune, output=output, resume=True)


def test_blocks_that_will_be_gone_are_not_counted(tmp_path: Path, text: Path) -> None:
    drop = {"stage": "drop_blocks", "blocks": [1, 2]}
    model = tiny_model("llama", 4)
    last = recover(text, "head_and_last_blocks", last_blocks=3)
    message = "expected at least 3 blocks to train, the model has 2 by then"
    for stages in ([drop, last], [{**drop, "blocks": [1]}, {**drop, "blocks": [1]}, last]):
        with pytest.raises(SecateurError, match=message):
            run(model, *stages)
        assert len(find_blocks(model)) == 4
    inherit = {"stage": "inherit", "blocks": 1, "tolerance": 99.0, "training": training(text)}
    with pytest.raises(SecateurError, match="3 blocks to train, the model has 2 by then"):
        run(model, {**inherit, "max_blocks": 2}, last)
    assert len(find_blocks(model)) == 4
    last = recover(text, "head_and_last_blocks", last_blocks=1)
    run(model, {**inherit, "max_blocks": 3}, last)
    assert len(find_blocks(model)) == 1


# Interrupted.


def test_an_interrupted_run_goes_on(tmp_path: Path, text: Path) -> None:
    stages = (PRUNE, recover(text, "linears"), recover(text, "all", seed=1))
    folder = dense_folder(tmp_path / "dense", dtype="bfloat16")
    expected, report, _ = run(folder, *stages, output=tmp_path / "whole")
    for place, step in (("second", 4), ("third", 10)):
        output = tmp_path / place / "out"
        output.parent.mkdir()
        with pytest.raises(Interrupted):
            run(folder, *stages, output=output, progress=StopAt(step))
        assert not output.exists()
        assert beside(output) == [".out.training"]
        model, again, _ = run(folder, *stages, output=output, resume=True)
        assert same_values(values_of(model), values_of(expected))
        for one, other in zip(report.stages[1:], again.stages[1:], strict=True):
            assert isinstance(one, RecoverRecord)
            assert isinstance(other, RecoverRecord)
            assert _curve(one) == _curve(other)
            assert one.run.kept_step == other.run.kept_step
        assert beside(output) == []


def _curve(record: RecoverRecord) -> list[tuple[Any, ...]]:
    return [(p.step, p.num_tokens, p.train_loss, p.held_out_loss) for p in record.run.points]


def test_another_run_is_not_resumed(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, model = tmp_path / "out", tiny_model("llama")
    with pytest.raises(Interrupted):
        run(model, recover(text), output=output, progress=StopAt(4))
    with pytest.raises(SecateurError, match=r"another training: the recipe has changed since"):
        run(tiny_model("llama"), recover(text, "all"), output=output, resume=True)
    message = r"another training: the model has changed since\. Start anew without resume"
    with pytest.raises(SecateurError, match=message):
        run(tiny_model("llama", seed=1), recover(text), output=output, resume=True)
    message = "another training: the calibration has changed since"
    with pytest.raises(SecateurError, match=message):
        run(
            tiny_model("llama"),
            recover(text),
            output=output,
            resume=True,
            calibration=torch.full((1, 8), 5),
        )
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "another training: the number of processes has changed since"
    with pytest.raises(SecateurError, match=message):
        run(tiny_model("llama"), recover(text), output=output, resume=True)
    monkeypatch.delenv("WORLD_SIZE")
    run(tiny_model("llama"), recover(text, "all"), output=output)
    assert beside(output) == []


# The command.


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(tmp_path: Path, text: Path) -> None:
    folder = dense_folder(tmp_path / "dense", dtype="bfloat16")
    pruned = tmp_path / "pruned"
    compress_with_report(folder, {"stages": [PRUNE]}, output=pruned)
    short = ["--max-seq-length", "12", "--num-tokens", "144", "--batch-size", "2"]
    short += ["--held-out", "5", "--eval-steps", "3", "--learning-rate", "0.01"]
    output = tmp_path / "out"
    done = command(
        "recover", pruned, "--output", output, "--data", text, "--method", "gates", *short
    )
    assert done.exit_code == 0, done.output
    assert f"wrote {output}" in done.output
    assert "parameters trained by gates" in done.output
    (record,) = load_report(output).stages
    assert isinstance(record, RecoverRecord)
    assert f"{record.run.loss_after:.3f}" in done.output
    assert command("verify", output).exit_code == 0
    again = command("recover", pruned, "--output", output, "--data", text, *short)
    assert again.exit_code != 0
    wrong = command(
        "recover", pruned, "--output", tmp_path / "o", "--data", text, "--method", "magic", *short
    )
    assert wrong.exit_code != 0
    assert "expected one of gates, linears, all, lora, head_and_last_blocks" in str(wrong.exception)
    lora = command(
        "recover", pruned, "--output", tmp_path / "o", "--data", text, "--method", "lora", *short
    )
    assert lora.exit_code != 0
    assert not (tmp_path / "o").exists()
