"""Synthetic records: plausible, small, and the same on every call."""

from typing import Any, Literal

from secateur.report.comparison import Comparison, Sample, Variant
from secateur.report.record import (
    AnyStage,
    BlockRecord,
    CalibrationRecord,
    DropRecord,
    FactoredLayer,
    FactorRecord,
    LayerRecord,
    ModelRecord,
    PruneRecord,
    QualityRecord,
    Report,
    SizeRecord,
)

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INFLUENCE = (0.412, 0.181, 0.094, 0.061, 0.058, 0.077, 0.139, 0.503)
VERSIONS = {"secateur": "0.1.0", "torch": "2.10.0", "transformers": "5.17.1"}
MACHINE = {"processor": "Example CPU", "cores": "2", "device": "cpu"}
PROMPTS = (
    "It was a dark and stormy night, and the old gardener",
    "“My dear Mr. Bennet,” said his lady to him one day,",
)
TEXTS = {
    "dense": " set down his lamp upon the bench and looked out at the rain.",
    "sparsegpt": " set down his lamp and looked for the rain, which was at the door.",
    "wanda": " was set down in the lamp, and the rain was looking out at him.",
    "magnitude": " the the lamp of of the, and and was a the rain of the of.",
    "depth": " was gone out of the rain. He had no lamp, and no bench.",
}


def layer(block: int = 0, kind: str = "q_proj", **changes: Any) -> LayerRecord:
    part = "self_attn" if kind in KINDS[:4] else "mlp"
    values: dict[str, Any] = {
        "name": f"model.layers.{block}.{part}.{kind}",
        "block": block,
        "shape": (256, 688) if kind == "down_proj" else (256, 256),
        "method": "wanda",
        "pattern": "2:4",
        "sparsity": 0.5,
        "output_error": 0.031 + 0.017 * ((3 * block + 5 * len(kind) + ord(kind[0])) % 11),
        "num_tokens": 32768,
        "seconds": 0.21,
    }
    return LayerRecord(**{**values, **changes})


def prune(method: str = "wanda", num_blocks: int = 8, **changes: Any) -> PruneRecord:
    layers = [layer(block, kind, method=method) for block in range(num_blocks) for kind in KINDS]
    blocks = [
        BlockRecord(block=b, output_error=0.04 + 0.01 * b, seconds=1.5) for b in range(num_blocks)
    ]
    values: dict[str, Any] = {
        "method": method,
        "pattern": "2:4",
        "comparison_group": None,
        "layers": tuple(layers),
        "blocks": tuple(blocks),
        "seconds_calibrating": 6.2,
        "seconds_pruning": 11.4,
        "seconds_propagating": 3.3,
    }
    return PruneRecord(**{**values, **changes})


def drop(dropped: tuple[int, ...] = (4, 3), **changes: Any) -> DropRecord:
    values: dict[str, Any] = {
        "criterion": "block_influence",
        "block_influence": INFLUENCE,
        "dropped": dropped,
        "seconds": 2.1,
    }
    return DropRecord(**{**values, **changes})


def factor(num_factored: int = 46, num_dense: int = 10, **changes: Any) -> FactorRecord:
    """Factors of rank 64 hold half of each matrix's values; the last matrices stay dense."""
    layers = [
        FactoredLayer(
            name=f"model.layers.{index // 7}.{KINDS[index % 7]}",
            block=index // 7,
            shape=(256, 256),
            rank=64 if index < num_factored else None,
            num_parameters=32768 if index < num_factored else 65536,
            output_error=0.1 if index < num_factored else None,
            num_tokens=32768,
            seconds=0.2,
        )
        for index in range(num_factored + num_dense)
    ]
    values: dict[str, Any] = {
        "method": "svd-whitened",
        "budget": None,
        "layers": tuple(layers),
        "blocks": (),
        "seconds": 9.0,
        "importance": "loss",
    }
    return FactorRecord(**{**values, **changes})


def quality(
    perplexity: float = 24.12,
    standard_error: float = 0.41,
    when: Literal["before", "after"] = "after",
) -> QualityRecord:
    return QualityRecord(
        text="evaluation.txt",
        when=when,
        perplexity=perplexity,
        standard_error=standard_error,
        num_tokens=49152,
        max_seq_length=512,
    )


def report(*stages: AnyStage, **changes: Any) -> Report:
    stages = stages or (prune(),)
    values: dict[str, Any] = {
        "created": "2026-11-21T06:00:00Z",
        "versions": VERSIONS,
        "machine": MACHINE,
        "model": ModelRecord(
            source="examples/books-8m",
            revision=None,
            architecture="LlamaForCausalLM",
            num_blocks=8,
            num_parameters=8_393_472,
            num_bytes=16_801_344,
            dtype="bfloat16",
            unmatched=("model.embed_tokens.weight: an embedding",),
        ),
        "recipe": {"version": 1, "stages": [{"stage": stage.stage} for stage in stages]},
        "calibration": CalibrationRecord(
            source="calibration.txt",
            num_samples=64,
            max_seq_length=512,
            num_tokens=32768,
            seed=7,
            tokens_sha256="5f" * 32,
        ),
        "stages": stages,
        "size": SizeRecord(
            num_parameters=8_393_472, num_bytes=16_801_344, num_zeros=3_145_728, num_blocks=8
        ),
        "seconds": {"load": 0.84, "calibration data": 0.11, "stage 1": 20.9, "save": 0.37},
        "peak_memory_bytes": 912_000_000,
    }
    return Report(**{**values, **changes})


def variant(
    name: str, family: str, setting: str, perplexity: float = 24.12, **changes: Any
) -> Variant:
    pruned = family in ("magnitude", "wanda", "sparsegpt")
    values: dict[str, Any] = {
        "name": name,
        "family": family,
        "setting": setting,
        "quality": quality(perplexity, 0.017 * perplexity),
        "num_parameters": 8_393_472,
        "num_zeros": 3_145_728 if pruned else 0,
        "num_bytes": 16_801_344,
        "seconds_compress": 0.0 if family == "dense" else 22.2,
        "prefill_tokens_per_second": 10_000.0,
        "samples": tuple(Sample(prompt=p, text=TEXTS.get(family, " so.")) for p in PROMPTS),
        "report": report(prune(family)) if pruned else None,
    }
    return Variant(**{**values, **changes})


def depth_variant(count: int, perplexity: float, speed: float) -> Variant:
    dropped = tuple(sorted(range(8), key=lambda block: INFLUENCE[block])[:count])
    left = 8_393_472 - count * 786_944
    return variant(
        f"ShortGPT {8 - count} of 8 blocks",
        "depth",
        f"{8 - count} of 8 blocks",
        perplexity,
        num_parameters=left,
        num_bytes=2 * left,
        seconds_compress=3.1,
        prefill_tokens_per_second=speed,
        report=report(drop(dropped)),
    )


def comparison(*variants: Variant, **changes: Any) -> Comparison:
    """The dense model and what is given, else seven usual variants."""
    usual = (
        variant("Magnitude 2:4", "magnitude", "2:4", 41.77, prefill_tokens_per_second=9_950.0),
        variant("Wanda 2:4", "wanda", "2:4", 26.03, prefill_tokens_per_second=10_020.0),
        variant("SparseGPT 2:4", "sparsegpt", "2:4", 24.71, prefill_tokens_per_second=9_980.0),
        variant("Magnitude 50%", "magnitude", "50%", 28.36),
        variant("Wanda 50%", "wanda", "50%", 22.48),
        variant("SparseGPT 50%", "sparsegpt", "50%", 22.05),
        depth_variant(2, 33.19, 12_910.0),
    )
    values: dict[str, Any] = {
        "title": "Pruning books-8m",
        "created": "2026-11-21T06:00:00Z",
        "machine": MACHINE,
        "versions": VERSIONS,
        "block_influence": INFLUENCE,
        "variants": (variant("Dense", "dense", "dense", 20.31), *(variants or usual)),
    }
    return Comparison(**{**values, **changes})
