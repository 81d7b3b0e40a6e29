"""The model card that goes with a compressed checkpoint."""

from secateur.recipe import UNSTRUCTURED, Recipe, parse_sparsity
from secateur.report.drop_words import criterion_words, dropped_words
from secateur.report.factor_words import factored_words
from secateur.report.record import FactorRecord, PruneRecord, Report
from secateur.report.training_record import InheritRecord, RecoverRecord
from secateur.report.training_words import training_words

_TEMPLATE = """\
---
library_name: transformers
tags: [secateur, pruned]
{base}---
# {name}, compressed with Secateur

Made from `{source}` ({architecture}) with Secateur {version}.
{loading}

| | before | after |
|---|---|---|
| blocks | {blocks_before} | {blocks_after} |
| parameters | {parameters_before:,} | {parameters_after:,} |
{zeros}| bytes of weights | {bytes_before:,} | {bytes_after:,} |

{facts}

## Recipe

```yaml
{recipe}```

Calibration: {calibration}.

`secateur_report.json` says what was done to every layer and at what cost;
`secateur verify FOLDER` checks files, zeros and logits against it.
"""


_LOADS_ANYWHERE = "It loads as any model does: `AutoModelForCausalLM.from_pretrained(folder)`."
_LOADS_COMPACT = (
    "What was pruned, factored or removed is stored as such: `import secateur` first, then "
    "`AutoModelForCausalLM.from_pretrained(folder)` as for any model."
)
_ZEROS_STORED = " Zeros in a dense file bring neither size nor speed by themselves."


def model_card(recipe: Recipe, report: Report, is_compact: bool) -> str:
    """Markdown with the metadata header that the Hub reads.

    Args:
        recipe: that made the model.
        report: of the compression.
        is_compact: whether it holds layers that only Secateur knows.
    """
    model, size = report.model, report.size
    calibration = report.calibration
    return _TEMPLATE.format(
        base=f"base_model: {model.source}\n" if model.from_hub else "",
        name=model.source.rstrip("/").rsplit("/", 1)[-1],
        source=model.source,
        architecture=model.architecture,
        version=report.versions.get("secateur", ""),
        loading=_LOADS_COMPACT if is_compact else _LOADS_ANYWHERE,
        blocks_before=model.num_blocks,
        blocks_after=size.num_blocks,
        parameters_before=model.num_parameters,
        parameters_after=size.num_parameters,
        zeros=f"| of which zero | | {size.num_zeros:,} |\n" if report.tells_zeros else "",
        bytes_before=model.num_bytes,
        bytes_after=size.num_bytes,
        facts="\n".join(_facts(report, is_compact)),
        recipe=recipe.to_yaml(),
        calibration=(
            "none"
            if calibration is None
            else f"{calibration.num_samples} samples, {calibration.num_tokens:,} tokens, "
            f"seed {calibration.seed}, from {calibration.source}"
        ),
    )


def _facts(report: Report, is_compact: bool) -> list[str]:
    facts = []
    for stage in report.stages:
        if isinstance(stage, PruneRecord):
            zeros = f"{stage.sparsity:.2%} zeros in {len(stage.layers)} matrices"
            # Of compact files, the matrices that are not 2:4 are stored whole.
            stored = "" if is_compact and _is_packed(stage.pattern) else _ZEROS_STORED
            facts.append(f"- {stage.method}, {stage.pattern}: {zeros}.{stored}")
        elif isinstance(stage, FactorRecord):
            facts.append(f"- {factored_words(stage)}.")
        elif isinstance(stage, RecoverRecord | InheritRecord):
            facts.append(f"- {training_words(stage)}.")
        else:
            facts.append(f"- {dropped_words(stage)} ({criterion_words(stage)}).")
    for quality in report.quality:
        facts.append(
            f"- perplexity {quality.when}: {quality.perplexity:.2f} ± "
            f"{quality.standard_error:.2f} on {quality.text} (windows of "
            f"{quality.max_seq_length} tokens)."
        )
    return facts


def _is_packed(pattern: str) -> bool:
    """Whether compact checkpoints store what has this pattern as 2:4."""
    return pattern != UNSTRUCTURED and parse_sparsity(pattern, None).makes_sparse24
