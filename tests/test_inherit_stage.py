"""The inherit stage: rounds, growth, what is carried, what an interruption leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from rich.console import Console
from small_trainings import (
    Interrupted,
    StopAt,
    options,
    same_values,
    training_texts,
    values_of,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from secateur import compress_with_report
from secateur.checkpoint.load import load_model
from secateur.checkpoint.verify import verify_checkpoint
from secateur.cli.app import app
from secateur.errors import SecateurError
from secateur.inherit.start import initialise
from secateur.models.blocks import find_blocks
from secateur.progress import SilentProgress
from secateur.recipe import InheritStage
from secateur.report.page import render_report
from secateur.report.record import load_report
from secateur.report.table import report_table
from secateur.report.training_record import InheritRecord
from secateur.stages.inherit import check_inherit_stage, round_sizes, run_inherit
from secateur.training.checkpoints import CheckpointFolder
from secateur.training.evaluate import held_out_loss
from secateur.training.trainer import RecoveryTrainer

# Any loss is within this of the parent's.
AT_ONCE = 100.0


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that no model is as good as."""
    monkeypatch.setattr("secateur.stages.inherit.held_out_loss", lambda *_: -1.0)


def parent() -> nn.Module:
    """Random."""
    return tiny_model("llama", 5)


def stage(**changes: Any) -> InheritStage:
    """Rounds of four steps that begin with one block."""
    return InheritStage(**{"blocks": 1, "training": options(4), **changes})


def run(
    model: nn.Module,
    folder: Path,
    inherit: InheritStage,
    resume: bool = False,
    progress: Any = None,
) -> InheritRecord:
    place = CheckpointFolder(folder, resume)
    place.claim({"test": "same"})
    return run_inherit(
        model, inherit, training_texts(), place, progress or SilentProgress(), on_cpu=True
    )


def sizes(record: InheritRecord) -> list[int]:
    return [entry.num_blocks for entry in record.rounds]


# Rounds.


@pytest.mark.parametrize(
    ("changes", "num_blocks", "expected"),
    [
        ({}, 5, (1, 3, 4)),
        ({"grow_by": 1}, 5, (1, 2, 3, 4)),
        ({"blocks": 2}, 7, (2, 4, 6)),
        ({"blocks": 2, "grow_by": 9}, 7, (2, 6)),
        ({"max_blocks": 5}, 5, (1, 3, 5)),
        ({"max_blocks": 1}, 5, (1,)),
        ({"blocks": 5}, 5, (5,)),
        ({}, 1, (1,)),
    ],
)
def test_round_sizes(changes: dict[str, Any], num_blocks: int, expected: tuple[int, ...]) -> None:
    assert round_sizes(stage(**changes), num_blocks) == expected
    check_inherit_stage(stage(**changes), num_blocks)


@pytest.mark.parametrize("changes", [{"blocks": 6}, {"max_blocks": 6}])
def test_more_blocks_than_there_are(changes: dict[str, Any]) -> None:
    with pytest.raises(SecateurError, match="inherit: expected at most 5 blocks, as many as the"):
        check_inherit_stage(stage(**changes), 5)


@pytest.mark.usefixtures("unreachable")
def test_it_grows_until_there_are_no_more(tmp_path: Path) -> None:
    model = parent()
    blocks = list(find_blocks(model).modules)
    record = run(model, tmp_path, stage())
    assert sizes(record) == [1, 3, 4]
    assert list(find_blocks(model).modules) == blocks[:4]
    assert (record.parent_loss, record.parent_blocks, record.matched) == (-1.0, 5, False)


def test_it_stops_when_the_parent_is_reached(tmp_path: Path) -> None:
    model = parent()
    loss = held_out_loss(model, training_texts().held_out, 2)
    record = run(model, tmp_path, stage(tolerance=AT_ONCE))
    assert record.parent_loss == loss
    assert sizes(record) == [1]
    assert record.matched
    assert record.loss == record.rounds[0].run.loss_after
    assert len(find_blocks(model)) == 1 == model.config.num_hidden_layers
    assert record.loss == pytest.approx(
        held_out_loss(model, training_texts().held_out, 2), rel=1e-6
    )


class Watch:
    """Progress that copies the model when a round begins and when it ends."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.begun: list[dict[str, Tensor]] = []
        self.latest: list[dict[str, Tensor]] = []

    def begin(self, task: str, total: int) -> None:
        """Copy."""
        assert task == f"round {len(self.begun) + 1}: {len(find_blocks(self._model))} blocks"
        self.begun.append(values_of(self._model))
        self.latest.append({})

    def advance(self, detail: str = "") -> None:
        """Copy."""
        self.latest[-1] = values_of(self._model)

    def close(self) -> None:
        """Ignore."""


def grown(tmp_path: Path, **changes: Any) -> tuple[nn.Module, Watch]:
    """All rounds."""
    model = parent()
    watch = Watch(model)
    training = options(4, keep_best=False)
    record = run(model, tmp_path, stage(training=training, **changes), progress=watch)
    assert sizes(record) == [1, 3, 4]
    return model, watch


@pytest.mark.usefixtures("unreachable")
def test_growth_adds_the_parents_next_blocks(tmp_path: Path) -> None:
    original = values_of(parent())
    model, watch = grown(tmp_path)
    for number, (before, after) in enumerate(((0, 1), (1, 3), (3, 4))):
        begun = watch.begun[number]
        added = tuple(f"model.layers.{index}." for index in range(before, after))
        for name, item in begun.items():
            if name.startswith(added):
                assert torch.equal(item, original[name]), name
            elif number:
                # The others are those that the round before ended with.
                assert torch.equal(item, watch.latest[number - 1][name]), name
                assert not torch.equal(item, original[name]), name
        assert not any(name.startswith(f"model.layers.{after}.") for name in begun)
    assert same_values(values_of(model), watch.latest[-1])


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_parts(tmp_path: Path, part: str) -> None:
    original = values_of(parent())
    _, watch = grown(tmp_path, part=part)
    for name, item in watch.begun[0].items():
        is_new = f".{'mlp' if part == 'attention' else 'self_attn'}." in name
        assert torch.equal(item, original[name]) == (not is_new), name


@pytest.mark.usefixtures("unreachable")
def test_random_and_stacked(tmp_path: Path) -> None:
    new = parent()
    initialise(new, 0)
    expected = values_of(new)
    model, watch = grown(tmp_path / "random", start="random")
    assert all(torch.equal(item, expected[name]) for name, item in watch.begun[0].items())
    added = ("model.layers.1.", "model.layers.2.")
    assert all(
        torch.equal(item, expected[name])
        for name, item in watch.begun[1].items()
        if name.startswith(added)
    )
    model, watch = grown(tmp_path / "stacked", start="stacked")
    assert all(torch.equal(item, expected[name]) for name, item in watch.begun[0].items())
    for number, place, source in ((1, 1, 0), (1, 2, 0), (2, 3, 2)):
        for name, item in watch.begun[number].items():
            if name.startswith(f"model.layers.{place}."):
                lower = name.replace(f"layers.{place}.", f"layers.{source}.")
                assert torch.equal(item, watch.begun[number][lower])
    assert same_values(values_of(model), watch.latest[-1])


def test_distilled_learns_from_the_parent(tmp_path: Path) -> None:
    training = options(8, loss="distillation", eval_steps=4, batch_size=4)
    model = parent()
    inherit = stage(blocks=2, max_blocks=2, start="distilled", training=training)
    record = run(model, tmp_path, inherit)
    first, last = record.rounds[0].run.points[1].train_loss, record.rounds[0].run.points[-1]
    assert first is not None
    assert last.train_loss is not None
    assert 0 < last.train_loss < first
    assert record.start == "distilled"


# The optimizer between rounds.


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("optimizer", ["restarted", "carried"])
def test_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    steps: list[dict[str, float]] = []
    create = RecoveryTrainer.create_optimizer

    def noted(self: RecoveryTrainer, *args: Any, **kwargs: Any) -> Any:
        made = create(self, *args, **kwargs)
        names = {id(item): name for name, item in self.model.named_parameters()}
        steps.append({names[id(item)]: float(s["step"]) for item, s in made.state.items()})
        return made

    monkeypatch.setattr(RecoveryTrainer, "create_optimizer", noted)
    _, watch = grown(tmp_path, optimizer=optimizer)
    assert len(steps) == 3
    assert steps[0] == {}
    if optimizer == "restarted":
        assert steps[1:] == [{}, {}]
        return
    assert steps[1] == dict.fromkeys(watch.begun[0], 4.0)
    later = dict.fromkeys(watch.begun[1], 4.0) | dict.fromkeys(watch.begun[0], 8.0)
    assert steps[2] == later


def test_moments_of_sharded_weights_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = RecoveryTrainer.__init__

    def sharded(self: RecoveryTrainer, **options: Any) -> None:
        begin(self, **options)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(RecoveryTrainer, "__init__", sharded)
    with pytest.raises(SecateurError, match=r"carried needs weights that are not sharded \(FSDP\)"):
        grown(tmp_path, optimizer="carried")


# Interrupted.


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    ("start", "optimizer"), [("inherited", "carried"), ("stacked", "restarted")]
)
def test_an_interrupted_stage_goes_on(tmp_path: Path, start: str, optimizer: str) -> None:
    inherit = stage(start=start, optimizer=optimizer)
    whole = parent()
    expected = run(whole, tmp_path / "whole", inherit)
    assert sizes(expected) == [1, 3, 4]
    # In the first round, at its end, in the second.
    for step in (3, 4, 7):
        folder = tmp_path / str(step)
        with pytest.raises(Interrupted):
            run(parent(), folder, inherit, progress=StopAt(step))
        model = parent()
        record = run(model, folder, inherit, resume=True)
        assert same_values(values_of(model), values_of(whole)), step
        assert [_figures(entry.run) for entry in record.rounds] == [
            _figures(entry.run) for entry in expected.rounds
        ]


def _figures(run: Any) -> list[Any]:
    points = [(p.step, p.num_tokens, p.train_loss, p.held_out_loss) for p in run.points]
    return [run.loss_before, run.loss_after, run.kept_step, run.ending, *points]


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("optimizer", ["restarted", "carried"])
def test_a_finished_round_is_not_trained_again(tmp_path: Path, optimizer: str) -> None:
    """Even if its checkpoints are gone, as they may be."""
    inherit = stage(optimizer=optimizer)
    expected = parent()
    run(expected, tmp_path / "whole", inherit)
    with pytest.raises(Interrupted):
        run(parent(), tmp_path / "cut", inherit, progress=StopAt(5))
    for path in (tmp_path / "cut" / "round-1").glob("checkpoint-*/*"):
        path.unlink()
    model = parent()
    run(model, tmp_path / "cut", inherit, resume=True)
    assert same_values(values_of(model), values_of(expected))


@pytest.mark.usefixtures("unreachable")
def test_a_round_that_diverged_is_told(tmp_path: Path) -> None:
    class Breaks(Watch):
        def advance(self, detail: str = "") -> None:
            self._steps = getattr(self, "_steps", 0) + 1
            if self._steps == 3:
                self._model.get_parameter("model.norm.weight").data.fill_(torch.nan)

    model = parent()
    inherit = stage(max_blocks=2, grow_by=1)
    record = run(model, tmp_path, inherit, progress=Breaks(model))
    assert record.rounds[0].run.ending == "diverged"
    assert record.rounds[0].run.kept_step == 2
    assert record.warnings[-1].startswith("training diverged: the loss is not finite after 3 steps")
    assert record.rounds[1].run.ending == "finished"


# The whole chain.


def words() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB_SIZE)}}
    core = Tokenizer(WordLevel(vocabulary, unk_token="w3"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="w3", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(3)
    path = tmp_path / "train.jsonl"
    rows = [torch.randint(3, 11, (40,), generator=generator).tolist() for _ in range(12)]
    texts = [" ".join(f"w{i}" for i in row) for row in rows]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def folder_of(path: Path, num_blocks: int = 4) -> Path:
    tiny_model("llama", num_blocks).to(torch.bfloat16).save_pretrained(path)
    words().save_pretrained(path)
    return path


SHORT = {"max_seq_length": 12, "num_tokens": 96, "batch_size": 2, "held_out": 5, "eval_steps": 2}


def recipe(text: Path, **changes: Any) -> dict[str, Any]:
    training = {"data": [str(text)], **SHORT, **changes.pop("training", {})}
    return {"stage": "inherit", "blocks": 1, "training": training, **changes}


def test_through_a_recipe(tmp_path: Path, text: Path) -> None:
    folder, output = folder_of(tmp_path / "parent"), tmp_path / "out"
    chain = {"stages": [recipe(text, grow_by=1, max_blocks=2, tolerance=0.5)]}
    model, report = compress_with_report(
        folder, chain, output=output, device="cpu", progress=SilentProgress()
    )
    (record,) = report.stages
    assert isinstance(record, InheritRecord)
    assert all(check.passed for check in verify_checkpoint(output))
    loaded = load_model(output).model
    assert len(find_blocks(loaded)) == sizes(record)[-1] == report.size.num_blocks
    assert same_values(values_of(loaded), values_of(model))
    assert load_report(output) == report
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    page = render_report(report)
    assert f"{record.loss:.3f}" in page
    assert f"{record.parent_loss:.3f}" in page
    assert "Loss by round" in page
    console = Console(width=160, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(report_table(report))
    for entry in record.rounds:
        assert f"{entry.run.loss_after:.4f}" in capture.get()


def test_errors(tmp_path: Path, text: Path) -> None:
    model = tiny_model("llama", 4)
    before = values_of(model)

    def refused(message: str, *stages: dict[str, Any]) -> None:
        with pytest.raises(SecateurError, match=message):
            compress_with_report(
                model,
                {"stages": list(stages)},
                output=tmp_path / "out",
                tokenizer=words(),
                device="cpu",
            )
        assert same_values(values_of(model), before)
        assert not [e for e in tmp_path.iterdir() if e.name.startswith((".", "out"))]

    refused("inherit: expected at most 4 blocks", recipe(text, blocks=5))
    refused("inherit: expected at most 4 blocks", recipe(text, max_blocks=5))
    drop = {"stage": "drop_blocks", "blocks": [1, 2]}
    refused("inherit: expected at most 2 blocks", drop, recipe(text, blocks=3))
    refused("expected at most 2 blocks", recipe(text, blocks=2), recipe(text, blocks=3))
    factor = {"stage": "factor", "method": "svd", "rank": 8}
    message = "inherit: compressed layers cannot be initialised anew"
    refused(message, factor, recipe(text, start="random"))
    refused(message, factor, recipe(text, part="mlp"))


def test_the_command(tmp_path: Path, text: Path) -> None:
    folder, output = folder_of(tmp_path / "parent"), tmp_path / "out"
    short = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]

    def command(*arguments: str) -> Any:
        given = ["inherit", str(folder), f"--output={output}", f"--data={text}", *short]
        return CliRunner().invoke(app, [*given, *arguments])

    refused = command("--blocks=5")
    assert refused.exit_code != 0
    assert "expected at most 4 blocks" in str(refused.exception)
    refused = command("--blocks=1", "--start=magic")
    assert "expected one of inherited, random, stacked, distilled" in str(refused.exception)
    assert not output.exists()
    done = command("--blocks=1", "--grow-by=2", "--start=distilled", "--tolerance=0.001")
    assert done.exit_code == 0, done.output
    (record,) = load_report(output).stages
    assert isinstance(record, InheritRecord)
    assert record.start == "distilled"
    assert f"{record.loss:.4f}" in done.output
    assert f"wrote {output}" in done.output
