"""The demonstration: one small trained model, every method, and what each cost and bought."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.checkpoint.load import LanguageModel, load_with_tokenizer
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.evaluate.generate import generate_text
from secateur.evaluate.perplexity import encode_text, perplexity
from secateur.evaluate.speed import decode_tokens_per_second, prefill_tokens_per_second
from secateur.evaluate.suite import read_text
from secateur.progress import Progress, SilentProgress
from secateur.recipe import Recipe, recipe_from_dict
from secateur.report.comparison import Comparison, Sample, Variant
from secateur.report.facts import machine_facts, package_versions
from secateur.report.record import DropRecord, QualityRecord, Report
from secateur.run_report import size_record

NUM_SAMPLES = 64
SEQ_LENGTH = 256
_NUM_PROMPTS = 4
_NEW_TOKENS = 48
_SPEED_SHAPE = (4, 256)
_PROMPT_TOKENS = 128
_SEED = 0


@dataclass(frozen=True)
class Entry:
    """One compressed variant of the demonstration."""

    name: str
    family: str
    setting: str
    stage: dict[str, Any]

    @property
    def folder_name(self) -> str:
        """Where it is written, below the demonstration's output."""
        return f"{self.family}-{self.setting}".replace(":", "of").replace("%", "").replace(" ", "-")

    @property
    def recipe(self) -> Recipe:
        """Its one stage as a recipe."""
        return recipe_from_dict({"stages": [self.stage]})


def entries(num_blocks: int) -> tuple[Entry, ...]:
    """Five pruners at 2:4, plain ones at 50%, factors at two sizes, a quarter of blocks dropped."""
    pruned = [
        Entry(
            f"{title} {setting}",
            method,
            setting,
            {"stage": "prune", "method": method, "pattern": pattern, "sparsity": sparsity},
        )
        for setting, pattern, sparsity in (("2:4", "2:4", None), ("50%", "unstructured", 0.5))
        for method, title in (
            ("magnitude", "Magnitude"),
            ("wanda", "Wanda"),
            ("sparsegpt", "SparseGPT"),
        )
    ]
    pruned[3:3] = _tuned()
    count = max(1, num_blocks // 4)
    setting = f"{num_blocks - count} of {num_blocks} blocks"
    dropped = Entry(
        f"ShortGPT {setting}", "depth", setting, {"stage": "drop_blocks", "count": count}
    )
    return (*pruned, *_factored(), dropped)


def _tuned() -> tuple[Entry, ...]:
    """With the regional optimizer; two rounds of five, for time's sake, where all samples go in."""
    plain = {"stage": "prune", "pattern": "2:4"}
    few = {"reconstruct": {"rounds": 2}}
    return (
        Entry("Wanda++ 2:4", "wanda++", "2:4", {**plain, "method": "wanda++"}),
        Entry("best-2:4, 2 rounds 2:4", "best-2:4", "2:4", {**plain, "method": "best-2:4", **few}),
    )


def _factored() -> tuple[Entry, ...]:
    """Low rank at equal numbers of stored values; the matrices' own, not the embeddings'."""
    found = [
        Entry(
            f"{title} {setting}",
            method,
            setting,
            {"stage": "factor", "method": method, "budget": budget},
        )
        for setting, budget in (("20% fewer values", 0.2), ("40% fewer values", 0.4))
        for method, title in (("svd", "SVD"), ("svd-whitened", "Whitened SVD"))
    ]
    both = {"stage": "factor", "method": "sparse-plus-low-rank", "budget": 0.4, "rounds": 1}
    name = "2:4 plus low rank 40% fewer values"
    return (*found, Entry(name, "sparse-plus-low-rank", "40% fewer values", both))


def run_demo(example: Path, output: Path, progress: Progress) -> Comparison:
    """Compress the example in every way, write the models below `output`, and compare them.

    Args:
        example: a model folder with `calibration.txt`, `evaluation.txt` and `prompts.txt`.
        output: gets a folder for each compressed model; those of an earlier run are replaced.
        progress: told after each model.

    Raises:
        SecateurError: the example is not complete.
    """
    calibration = _example_file(example, "calibration.txt")
    dense = load_with_tokenizer(example)
    todo = entries(size_record(dense.model).num_blocks)
    models: dict[str, nn.Module] = {"Dense": dense.model}
    reports: dict[str, Report] = {}
    progress.begin("compress", len(todo))
    for entry in todo:
        models[entry.name], reports[entry.name] = compress_with_report(
            example,
            entry.recipe,
            calibration=calibration,
            output=output / entry.folder_name,
            num_calibration_samples=NUM_SAMPLES,
            max_seq_length=SEQ_LENGTH,
            seed=_SEED,
            overwrite=True,
            progress=SilentProgress(),
        )
        progress.advance(entry.name)
    qualities = _measure_quality(models, dense, example, progress)
    samples = _sample(models, dense, example, progress)
    progress.begin("prefill and decode speed", 2)
    input_ids = _speed_tokens(size_record(dense.model).num_parameters)
    speeds = prefill_tokens_per_second(models, input_ids)
    progress.advance()
    decode_speeds = decode_tokens_per_second(models, input_ids[:1, :_PROMPT_TOKENS])
    progress.advance()
    dense_entry = Entry("Dense", "dense", "dense", {})
    variants = tuple(
        _variant(
            entry,
            models[entry.name],
            qualities[entry.name],
            samples[entry.name],
            (speeds[entry.name], decode_speeds[entry.name]),
            reports.get(entry.name),
        )
        for entry in (dense_entry, *todo)
    )
    return Comparison(
        title=f"{example.name}, compressed in {len(todo)} ways",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine_facts(),
        versions=package_versions(),
        block_influence=_block_influence(reports.values()),
        variants=variants,
    )


def _example_file(example: Path, name: str) -> Path:
    path = example / name
    if not path.is_file():
        raise SecateurError(
            f"expected {name} in the example folder {example}; run this in a checkout of the "
            "project, or pass --example FOLDER"
        )
    return path


def _measure_quality(
    models: dict[str, nn.Module], dense: LanguageModel, example: Path, progress: Progress
) -> dict[str, QualityRecord]:
    text = read_text(_example_file(example, "evaluation.txt"))
    token_ids = encode_text(dense.tokenizer, text)
    progress.begin("perplexity", len(models))
    qualities = {}
    for name, model in models.items():
        result = perplexity(model, token_ids, SEQ_LENGTH)
        qualities[name] = result.to_record(f"{example.name}/evaluation.txt")
        progress.advance(f"{name}  {result.perplexity:.2f}")
    return qualities


def _sample(
    models: dict[str, nn.Module], dense: LanguageModel, example: Path, progress: Progress
) -> dict[str, tuple[Sample, ...]]:
    lines = read_text(_example_file(example, "prompts.txt")).splitlines()
    prompts = [line.strip() for line in lines if line.strip()][:_NUM_PROMPTS]
    progress.begin("generate", len(models))
    samples = {}
    for name, model in models.items():
        samples[name] = tuple(
            Sample(
                prompt=prompt,
                text=generate_text(
                    model,
                    dense.tokenizer,
                    prompt,
                    _NEW_TOKENS,
                    temperature=0.7,
                    top_p=0.95,
                    seed=_SEED,
                ),
            )
            for prompt in prompts
        )
        progress.advance(name)
    return samples


def _speed_tokens(num_parameters: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_parameters)
    return torch.randint(3, 256, _SPEED_SHAPE, generator=generator)


def _variant(
    entry: Entry,
    model: nn.Module,
    quality: QualityRecord,
    samples: Sequence[Sample],
    speed: tuple[float, float],
    report: Report | None,
) -> Variant:
    size = size_record(model)
    return Variant(
        name=entry.name,
        family=entry.family,
        setting=entry.setting,
        quality=quality,
        num_parameters=size.num_parameters,
        num_zeros=size.num_zeros,
        num_bytes=size.num_bytes,
        seconds_compress=sum(report.seconds.values()) if report else 0.0,
        prefill_tokens_per_second=speed[0],
        decode_tokens_per_second=speed[1],
        samples=tuple(samples),
        report=report,
    )


def _block_influence(reports: Any) -> tuple[float, ...]:
    for report in reports:
        for stage in report.stages:
            if isinstance(stage, DropRecord) and stage.block_influence:
                return stage.block_influence
    return ()
