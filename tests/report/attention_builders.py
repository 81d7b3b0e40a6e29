"""Synthetic analyses of attention: plausible, small, and the same on every call."""

from typing import Any

from secateur.report.attention_record import (
    AnalysedModelRecord,
    AttentionBlock,
    AttentionRecord,
    AttentionTextRecord,
)


def block(number: int, *ranks: float, masses: tuple[float, ...] = ()) -> AttentionBlock:
    """Masses a little above the ranks, unless given."""
    return AttentionBlock(
        block=number, ranks=ranks, masses=masses or tuple(1.25 * rank for rank in ranks)
    )


BLOCKS = (
    block(0, 30.5, 12.25, 41.0),
    block(1, 60.0, 1.25, 88.0),
    block(2, 1.0, 9.0, 22.0),
    block(3, 1.0, 1.125, 1.0),
    block(4, 1.0, 1.0, 1.4375),
)


def analysis(
    blocks: tuple[AttentionBlock, ...] = BLOCKS, lazy: tuple[int, ...] = (3, 4), **changes: Any
) -> AttentionRecord:
    """Two lazy blocks at the end, and a lazy head in two others."""
    values: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 12.0,
        "versions": {"secateur": "0.1.0"},
        "machine": {"processor": "Example CPU"},
        "model": AnalysedModelRecord(
            source="tiny",
            architecture="LlamaForCausalLM",
            num_blocks=len(blocks),
            dtype="float32",
        ),
        "text": AttentionTextRecord(
            source="books.txt",
            num_samples=8,
            max_seq_length=128,
            seed=3,
            tokens_sha256="ab" * 32,
        ),
        "share": 0.9,
        "threshold": 1.5,
        "even_rank": 5.0,
        "even_mass": 75.0,
    }
    return AttentionRecord(lazy=lazy, blocks=blocks, **{**values, **changes})


def nothing_lazy() -> AttentionRecord:
    return analysis(BLOCKS[:3], ())


def scattered() -> AttentionRecord:
    """Lazy blocks in the middle; blocks have different numbers of heads."""
    blocks = (block(0, 4.0, 2.0), block(1, 1.0), block(2, 1.0, 1.0, 1.0), block(3, 50.0, 1.0))
    return analysis(blocks, (1, 2))


def deep() -> AttentionRecord:
    """So many blocks and heads that figures do not fit into cells."""
    blocks = tuple(
        block(number, *(1 + (127 * ((7 * number + head) % 32) / 40) for head in range(32)))
        for number in range(40)
    )
    return analysis((*blocks, block(40, *[1.0] * 32)), (40,))
