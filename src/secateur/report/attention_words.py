"""What an analysis of attention found, in sentences."""

from collections.abc import Sequence

from secateur.report.attention_record import AttentionBlock, AttentionRecord
from secateur.report.table import format_number, listed

_HEADS_NAMED = 6


def format_mean(value: float) -> str:
    """A mean rank or column mass: `1.00`, `33.2`, `155`."""
    return format_number(value, 2 if value < 9.995 else 1 if value < 99.95 else 0)


def runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of every run of neighbours among ascending blocks."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and block == found[-1][1] + 1:
            found[-1] = (found[-1][0], block)
        else:
            found.append((block, block))
    return found


def block_runs(blocks: Sequence[int]) -> str:
    """Ascending blocks with long runs drawn together: `2, 5 to 7 and 9`."""
    parts: list[str] = []
    for first, last in runs(blocks):
        parts += [f"{first} to {last}"] if last > first + 1 else map(str, range(first, last + 1))
    return listed(parts)


def headline(record: AttentionRecord) -> str:
    """Which blocks are lazy, or that none is."""
    limit = f"{record.threshold:g}"
    if record.lazy:
        one = len(record.lazy) == 1
        return (
            f"{'Block' if one else 'Blocks'} {block_runs(record.lazy)} "
            f"{'is' if one else 'are'} lazy: the attention of every head there has a mean rank "
            f"below {limit}."
        )
    lowest = min(record.blocks, key=lambda block: block.max_rank)
    return (
        f"No block is lazy: each has a head whose attention has a mean rank of {limit} or more. "
        f"Nearest is block {lowest.block}, whose strongest head has {format_mean(lowest.max_rank)}."
    )


def findings(record: AttentionRecord) -> list[str]:
    """What else the numbers say, a sentence each."""
    sentences = [_range_sentence(record), _even_sentence(record)]
    if record.lazy:
        sentences += [_place_sentence(record), _mass_sentence(record)]
    return [*sentences, _heads_sentence(record)]


def cautions(record: AttentionRecord) -> list[str]:
    """What a reader must know before acting on it."""
    return [
        "A low rank says that attention hardly depends on the token that asks. It does not say "
        "that the block can go: its MLP works on, and what a smaller model loses has to be "
        "measured.",
        f"Ranks and column masses grow with the length of the windows, here "
        f"{record.text.max_seq_length} tokens: figures at other lengths cannot be compared.",
    ]


def _range_sentence(record: AttentionRecord) -> str:
    if len(record.blocks) == 1:
        return f"The only block's strongest head has rank {format_mean(record.blocks[0].max_rank)}."
    low = min(record.blocks, key=lambda block: block.max_rank)
    high = max(record.blocks, key=lambda block: block.max_rank)
    return (
        f"By the strongest head, ranks go from {format_mean(low.max_rank)} in block {low.block} "
        f"to {format_mean(high.max_rank)} in block {high.block}."
    )


def _even_sentence(record: AttentionRecord) -> str:
    below = [(block, head) for block, head, rank in _heads(record) if rank < record.even_rank]
    total = len(_heads(record))
    return (
        f"Attention that looks at all tokens so far alike would have rank {record.even_rank:g}; "
        f"{len(below) or 'none'} of {total} heads {'are' if len(below) > 1 else 'is'} below it."
    )


def _place_sentence(record: AttentionRecord) -> str:
    lazy, total = record.lazy, len(record.blocks)
    if len(lazy) == total:
        return "That is every block of the model."
    if lazy == tuple(range(total - len(lazy), total)):
        them = "They are the deepest blocks" if len(lazy) > 1 else "It is the deepest block"
        return f"{them}; the paper finds lazy blocks there too."
    are = "are" if len(lazy) > 1 else "is"
    return f"{len(lazy)} of {total} blocks {are} lazy, and not simply the deepest."


def _mass_sentence(record: AttentionRecord) -> str:
    lazy = [block for block in record.blocks if block.block in record.lazy]
    columns = max(block.max_mass for block in lazy)
    return (
        f"In lazy blocks {100 * record.share:g}% of a head's attention lies on "
        f"{format_mean(columns)} of {record.text.max_seq_length} tokens or fewer"
        f"{_mass_elsewhere(record)}."
    )


def _mass_elsewhere(record: AttentionRecord) -> str:
    others = [block.max_mass for block in record.blocks if block.block not in record.lazy]
    return f", elsewhere on up to {format_mean(max(others))}" if others else ""


def _heads_sentence(record: AttentionRecord) -> str:
    heads = _heads(record)
    single = [
        f"head {head} of block {block}"
        for block, head, rank in heads
        if rank < record.threshold and block not in record.lazy
    ]
    if not single:
        where = " of another block" if record.lazy else ""
        return f"No head{where} has a mean rank below {record.threshold:g}."
    number = len(single)
    named = single if number <= _HEADS_NAMED else [*single[:_HEADS_NAMED], "others"]
    return (
        f"{number} of {len(heads)} heads {'has' if number == 1 else 'have'} a mean rank below "
        f"{record.threshold:g} in a block that is not lazy: {listed(named)}."
    )


def _heads(record: AttentionRecord) -> list[tuple[int, int, float]]:
    """(block, head, rank) of every head."""
    return [
        (block.block, head, rank)
        for block in record.blocks
        for head, rank in enumerate(block.ranks)
    ]


def head_counts(blocks: Sequence[AttentionBlock]) -> str:
    """`4`, or `4 to 8` where blocks differ."""
    counts = sorted({len(block.ranks) for block in blocks})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
