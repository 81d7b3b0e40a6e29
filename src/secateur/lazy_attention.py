"""The analysis of attention: model and tokens -> probabilities -> ranks -> record."""

from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

from torch import Tensor, nn

from secateur.calibration.data import CalibrationSource, Tokenizer, load_calibration
from secateur.calibration.tokens import CalibrationTokens
from secateur.depth.attention_rank import (
    LAZY_THRESHOLD,
    SHARE,
    AttentionRank,
    approximate_rank,
    column_mass,
    even_attention,
    lazy_blocks,
)
from secateur.models.attention import visit_attention
from secateur.models.blocks import find_blocks
from secateur.progress import Progress, SilentProgress
from secateur.report.attention_record import (
    AnalysedModelRecord,
    AttentionBlock,
    AttentionRecord,
    AttentionTextRecord,
)
from secateur.report.facts import machine_facts, package_versions
from secateur_kernels.precision import dtype_name


def analyse_attention(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    text: CalibrationSource,
    *,
    num_samples: int = 32,
    max_seq_length: int = 256,
    seed: int = 0,
    threshold: float = LAZY_THRESHOLD,
    source: str = "in memory",
    progress: Progress | None = None,
) -> AttentionRecord:
    """Find the blocks of a model whose attention is lazy (Inheritune, arXiv 2404.08634).

    Args:
        model: a causal language model of transformers, in evaluation mode; it is not changed.
        tokenizer: of the model; token ids do without.
        text: where windows are drawn from, as `load_calibration` takes it.
        num_samples: windows.
        max_seq_length: tokens in a window; the cost of a window grows with its cube.
        seed: of the draw.
        threshold: blocks are lazy whose heads all have a mean rank below this.
        source: of the model, for the record.
        progress: told of every block; its owner closes it.

    Raises:
        SecateurError: a threshold that nothing can be below, text that cannot be read or is too
            short for one window, tokens that do not fit the model, or a model that cannot give
            its attention.
    """
    started, progress = perf_counter(), progress or SilentProgress()
    lazy_blocks((), threshold)
    tokens = load_calibration(
        text,
        tokenizer,
        num_samples=num_samples,
        max_seq_length=max_seq_length,
        seed=seed,
        purpose="text",
    )
    tokens.check_fit(model)
    blocks = _measure(model, tokens, progress)
    even = even_attention(tokens.max_seq_length)
    return AttentionRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=perf_counter() - started,
        versions=package_versions(),
        machine=machine_facts(next(model.parameters()).device),
        model=AnalysedModelRecord(
            source=source,
            architecture=type(model).__name__,
            num_blocks=len(blocks),
            dtype=dtype_name(next(model.parameters()).dtype),
        ),
        text=AttentionTextRecord(
            source=Path(tokens.source).name,
            num_samples=len(tokens.samples),
            max_seq_length=tokens.max_seq_length,
            seed=seed,
            tokens_sha256=tokens.sha256(),
        ),
        share=SHARE,
        threshold=threshold,
        even_rank=float(approximate_rank(even)),
        even_mass=float(column_mass(even)),
        lazy=lazy_blocks([block.ranks for block in blocks], threshold),
        blocks=blocks,
    )


def _measure(
    model: nn.Module, tokens: CalibrationTokens, progress: Progress
) -> tuple[AttentionBlock, ...]:
    heads = [AttentionRank() for _ in range(len(find_blocks(model)))]

    def visit(block: int, probabilities: Tensor) -> None:
        heads[block].add(probabilities)

    def block_done(block: int) -> None:
        progress.advance(f"block {block}, rank {max(heads[block].mean_ranks()):.1f}")

    progress.begin("attention", len(heads))
    visit_attention(model, tokens.samples, visit, block_done)
    return tuple(
        AttentionBlock(block=index, ranks=entry.mean_ranks(), masses=entry.mean_masses())
        for index, entry in enumerate(heads)
    )
