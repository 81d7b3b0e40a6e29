import pytest
from attention_builders import BLOCKS, analysis, block, deep, nothing_lazy, scattered

from secateur.report.attention_words import (
    block_runs,
    cautions,
    findings,
    format_mean,
    head_counts,
    headline,
    runs,
)


@pytest.mark.parametrize(
    ("blocks", "shown", "found"),
    [
        ((4,), "4", [(4, 4)]),
        ((3, 4), "3 and 4", [(3, 4)]),
        ((5, 6, 7), "5 to 7", [(5, 7)]),
        ((0, 2, 3, 5, 6, 7, 9), "0, 2, 3, 5 to 7 and 9", [(0, 0), (2, 3), (5, 7), (9, 9)]),
    ],
)
def test_runs_of_blocks(blocks: tuple[int, ...], shown: str, found: list[tuple[int, int]]) -> None:
    assert block_runs(blocks) == shown
    assert runs(blocks) == found


def test_means_have_three_figures() -> None:
    values = (1, 9.994, 9.996, 99.94, 99.96, 155.4)
    assert [format_mean(v) for v in values] == ["1.00", "9.99", "10.0", "99.9", "100", "155"]


def test_says_which_blocks_are_lazy() -> None:
    record = analysis()
    assert headline(record) == (
        "Blocks 3 and 4 are lazy: the attention of every head there has a mean rank below 1.5."
    )
    assert findings(record) == [
        "By the strongest head, ranks go from 1.12 in block 3 to 88.0 in block 1.",
        # 1.25 in block 1, 1.0 in block 2, and all six of the lazy blocks.
        "Attention that looks at all tokens so far alike would have rank 5; 8 of 15 heads are "
        "below it.",
        "They are the deepest blocks; the paper finds lazy blocks there too.",
        "In lazy blocks 90% of a head's attention lies on 1.80 of 128 tokens or fewer, elsewhere "
        "on up to 110.",
        "2 of 15 heads have a mean rank below 1.5 in a block that is not lazy: head 1 of block 1 "
        "and head 0 of block 2.",
    ]


def test_says_that_no_block_is_lazy() -> None:
    record = nothing_lazy()
    assert headline(record) == (
        "No block is lazy: each has a head whose attention has a mean rank of 1.5 or more. "
        "Nearest is block 2, whose strongest head has 22.0."
    )
    text = " ".join(findings(record))
    assert "deepest" not in text
    assert "In lazy blocks" not in text
    even = analysis(BLOCKS[:1], (), even_rank=5.0)
    assert "none of 3 heads is below it" in " ".join(findings(even))
    assert findings(even)[0] == "The only block's strongest head has rank 41.0."
    assert findings(even)[-1] == "No head has a mean rank below 1.5."


def test_says_where_lazy_blocks_are() -> None:
    assert "2 of 4 blocks are lazy, and not simply the deepest." in findings(scattered())
    assert headline(deep()).startswith("Block 40 is lazy: ")
    assert "It is the deepest block; the paper finds lazy blocks there too." in findings(deep())
    one = analysis((block(0, 1.0), block(1, 9.0)), (0,))
    assert "1 of 2 blocks is lazy, and not simply the deepest." in findings(one)
    assert findings(one)[-1] == "No head of another block has a mean rank below 1.5."
    every = analysis((block(0, 1.0),), (0,))
    assert "That is every block of the model." in findings(every)
    assert "elsewhere" not in " ".join(findings(every))


def test_names_some_heads_of_many() -> None:
    last = findings(deep())[-1]
    assert "40 of 1312 heads have a mean rank below 1.5" in last
    assert last.count("head ") == 6
    assert last.endswith("and others.")
    single = analysis((block(0, 9.0, 1.0), block(1, 9.0)), ())
    assert "1 of 3 heads has a mean rank below 1.5" in findings(single)[-1]


def test_warns_of_what_a_rank_is_not() -> None:
    text = " ".join(cautions(analysis()))
    assert "does not say that the block can go" in text
    assert "here 128 tokens" in text


def test_the_threshold_is_the_records() -> None:
    assert "below 3.25." in headline(analysis(threshold=3.25))


def test_counts_of_heads() -> None:
    assert head_counts(BLOCKS) == "3"
    assert head_counts(scattered().blocks) == "1 to 3"
