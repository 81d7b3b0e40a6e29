"""What the measurements of the regional method rest on: reference, texts, shares, experiment."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from bench import ablation, texts
from bench.published import wanda_model
from bench.teacher_inputs import prune_with_teacher
from bench.trials import LENGTH, Bench, Quality, spread_windows
from families import VOCAB_SIZE, tiny_model

from secateur.calibration.tokens import tokens_from_tensor
from secateur.compress import compress, compress_with_report
from secateur.models.inventory import take_inventory
from secateur.progress import SilentProgress
from secateur.reconstruct import ReconstructionSettings


def ids(samples: int = 6, length: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (samples, length), generator=generator)


def test_the_plain_reference_is_the_librarys_wanda() -> None:
    ours, theirs = tiny_model("llama").double(), tiny_model("llama").double()
    recipe = {"stages": [{"stage": "prune", "method": "wanda", "pattern": "2:4"}]}
    compress(ours, recipe, calibration=ids(), progress=SilentProgress())
    wanda_model(theirs, ids())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_texts_are_cut_between_documents() -> None:
    documents = ["one " * 9, "two " * 9, "across the middle " * 2, "three " * 6, "four " * 7]
    choosing, reporting = texts.split_documents(texts.END_OF_DOCUMENT.join(documents))
    assert choosing == documents[:2]
    assert reporting == documents[3:]


def test_texts_share_no_document(tmp_path: Path) -> None:
    parts = ["first  of all", "seen in calibration", "m" * 30, "first of\nall", "only here " * 3]
    (tmp_path / "all.txt").write_text(texts.END_OF_DOCUMENT.join(parts), encoding="utf-8")
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("was seen in\ncalibration before", encoding="utf-8")
    texts.main(tmp_path / "all.txt", tmp_path / "out", calibration)
    assert (tmp_path / "out/choose.txt").read_text(encoding="utf-8") == "first  of all"
    assert (tmp_path / "out/report.txt").read_text(encoding="utf-8") == "only here " * 3


def test_windows_are_spread_evenly() -> None:
    tokens = torch.arange(10 * LENGTH + 7)
    assert (spread_windows(tokens, 4)[::LENGTH] // LENGTH).tolist() == [0, 2, 5, 7]
    assert torch.equal(spread_windows(tokens, 99), tokens[: 10 * LENGTH])


def test_the_gap_is_shared_in_logarithms() -> None:
    bench = Bench.__new__(Bench)
    bench.wanda_quality, bench.dense_quality = Quality(16.0, 100.0), Quality(1.0, 10.0)
    closed = bench.gap_closed(Quality(4.0, 1000.0))
    assert closed == {"choose": pytest.approx(0.5), "report": pytest.approx(-1.0)}


def test_moved_counts_kept_weights_alone() -> None:
    dense = tiny_model("llama", num_blocks=1)
    pruned = deepcopy(dense)
    sites = take_inventory(pruned).all_sites
    total = sum(site.weight.numel() for site in sites)
    sites[0].weight.zero_()
    sites[1].weight[0, :3] *= 2.0
    kept = total - sites[0].weight.numel()
    assert ablation.moved(dense, pruned) == pytest.approx(3 / kept)


def test_errors_are_averaged_over_blocks() -> None:
    recipe = {
        "stages": [
            {
                "stage": "prune",
                "method": "wanda++",
                "pattern": "2:4",
                "reconstruct": {"rounds": 2, "held_out": 0.5},
            }
        ]
    }
    model = tiny_model("llama")
    _, report = compress_with_report(model, recipe, calibration=ids(), progress=SilentProgress())
    first, second = report.stages[0].blocks  # type: ignore[union-attr]
    found = ablation.errors(report)
    assert found["error_after"] == pytest.approx((first.output_error + second.output_error) / 2)
    held_out = [block.rounds[-1].held_out_error for block in (first, second)]
    assert found["error_held_out"] == pytest.approx(sum(held_out) / 2)
    assert set(found) >= {"error_before", "error_trained_on"}


def test_trials_have_names_of_their_own() -> None:
    names = [(trial.question, trial.answer) for trial in ablation.trials()]
    assert len(set(names)) == len(names)


def test_teachers_differ_only_by_what_they_see() -> None:
    dense = tiny_model("llama")
    settings = ReconstructionSettings(rounds=3)
    tokens = tokens_from_tensor(ids())
    pruned, other = (
        prune_with_teacher(dense, tokens, sees, settings) for sees in ("pruned", "dense")
    )
    # What enters the first block is the same for both.
    first, last = (
        [
            torch.equal(a, b)
            for a, b in zip(
                pruned.model.layers[index].parameters(),
                other.model.layers[index].parameters(),
                strict=True,
            )
        ]
        for index in (0, 1)
    )
    assert all(first)
    assert not any(last)
    for site in take_inventory(other).all_sites:
        groups = (site.weight != 0).view(-1, 4).sum(dim=1)
        assert bool((groups == 2).all())


def test_teacher_on_pruned_inputs_is_the_librarys_way() -> None:
    ours = tiny_model("llama")
    recipe = {
        "stages": [
            {
                "stage": "prune",
                "method": "best-2:4",
                "pattern": "2:4",
                "reconstruct": {"rounds": 3},
            }
        ]
    }
    compress(ours, recipe, calibration=ids(), progress=SilentProgress())
    tokens = tokens_from_tensor(ids())
    settings = ReconstructionSettings(rounds=3)
    theirs = prune_with_teacher(tiny_model("llama"), tokens, "pruned", settings)
    mine, other = (model.model.layers[0].parameters() for model in (ours, theirs))
    for left, right in zip(mine, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_rows_with_a_record_of_the_same_texts_can_be_left_out(tmp_path: Path) -> None:
    facts = {"model": "m", "num_samples": 64, "windows": 24}
    rows = [
        {**facts, "question": "alpha", "answer": "1", "num_samples": 16},
        {**facts, "question": "alpha", "answer": "10", "windows": 96},
    ]
    path = tmp_path / "ablation.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert ablation.recorded(facts, tmp_path) == {("alpha", "1")}
    assert ablation.recorded(facts, tmp_path / "none") == set()
