import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import grouped, select_grouped

PATTERNS = [
    *[(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (3, 5), (3, 6)],
    *[(1, 8), (2, 8), (4, 8), (5, 8), (7, 8), (5, 16), (8, 16), (15, 16)],
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["plain", "transposed", "every second column", "slice"]


def expected_mask(score: Tensor, keep: int, group: int) -> Tensor:
    """Sort each group by (score descending, column ascending) and keep the first ones."""
    mask = torch.zeros(score.shape, dtype=torch.bool)
    for row, values in enumerate(score.tolist()):
        for start in range(0, len(values), group):
            order = sorted(range(start, start + group), key=lambda c: (-values[c], c))
            for column in order[:keep]:
                mask[row, column] = True
    return mask


def published_mask(metric: Tensor, num_pruned: int, group: int) -> Tensor:
    """What Wanda's code keeps: in each group the smallest are pruned, found by topk."""
    pruned = torch.zeros_like(metric, dtype=torch.bool)
    for start in range(0, metric.shape[1], group):
        part = metric[:, start : start + group]
        indices = torch.topk(part, num_pruned, dim=1, largest=False).indices
        pruned.scatter_(1, start + indices, True)
    return ~pruned


def palette(kind: str, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    tiny, largest = limits.smallest_normal, limits.max
    values = {
        "ties": [-1.0, 0.0, 1.0, 2.0],
        "zeros": [0.0, -0.0],
        "mostly zero": [0.0, -0.0, 0.0, tiny * limits.eps, -tiny * limits.eps],
        "extremes": [0.0, -0.0, tiny, tiny / 2, -tiny / 2, largest, -largest, 1.0, 1 + limits.eps],
        "many": [i / 64 for i in range(-90, 90)],
    }[kind]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def laid_out(score: Tensor, layout: str) -> Tensor:
    """The same values, stored otherwise."""
    rows, columns = score.shape
    if layout == "transposed":
        return score.T.contiguous().T
    if layout == "every second column":
        wide = torch.full((rows, 2 * columns), 7.0, dtype=score.dtype)
        wide[:, ::2] = score
        return wide[:, ::2]
    if layout == "slice":
        wide = torch.full((rows + 1, columns + 3), 7.0, dtype=score.dtype)
        wide[1:, 3:] = score
        return wide[1:, 3:]
    return score


def drawn_score(rows: int, columns: int, kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    values = palette(kind, dtype)
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randint(len(values), (rows, columns), generator=generator)]


@settings(deadline=None, max_examples=250)
@given(
    pattern=st.sampled_from(PATTERNS),
    rows=st.integers(1, 5),
    groups=st.integers(1, 6),
    kind=st.sampled_from(["ties", "zeros", "mostly zero", "extremes", "many"]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 10**6),
)
def test_mask_is_that_of_sorting_every_group(
    pattern: tuple[int, int],
    rows: int,
    groups: int,
    kind: str,
    dtype: torch.dtype,
    layout: str,
    seed: int,
) -> None:
    keep, group = pattern
    score = laid_out(drawn_score(rows, groups * group, kind, dtype, seed), layout)
    before = score.clone()
    mask = select_grouped(score, keep, group)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected_mask(score, keep, group))
    assert torch.equal(score, before)
    assert torch.equal(score.signbit(), before.signbit())


@pytest.mark.parametrize(("keep", "group"), PATTERNS)
def test_every_byte_of_the_mask_is_zero_or_one(keep: int, group: int) -> None:
    score = drawn_score(4, 5 * group, "ties", torch.float32, seed=keep)
    mask = select_grouped(score, keep, group)
    assert mask.contiguous().view(torch.uint8).max() <= 1
    assert mask.view(-1, group).sum(dim=1).tolist() == [keep] * 20


@pytest.mark.parametrize(("keep", "group"), PATTERNS)
def test_ties_keep_the_lower_columns(keep: int, group: int) -> None:
    expected = ([True] * keep + [False] * (group - keep)) * 3
    for value in (0.0, -0.0, -1.0, 3.0):
        mask = select_grouped(torch.full((2, 3 * group), value), keep, group)
        assert mask.tolist() == [expected] * 2
    signs = torch.tensor([[-0.0, 0.0] * group, [0.0, -0.0] * group])
    first = [True] * keep + [False] * (group - keep)
    assert select_grouped(signs, keep, group).tolist() == [first * 2] * 2


def test_many_ties_in_a_large_group() -> None:
    score = drawn_score(3, 2 * 1000, "ties", torch.float32, seed=9)
    assert torch.equal(select_grouped(score, 400, 1000), expected_mask(score, 400, 1000))


def test_all_orders_of_four_scores() -> None:
    orders = torch.cartesian_prod(*[torch.arange(4.0)] * 4)
    assert len(orders) == 256
    for keep in (1, 2, 3):
        assert torch.equal(select_grouped(orders, keep, 4), expected_mask(orders, keep, 4))


def test_groups_do_not_see_their_neighbours() -> None:
    score = torch.zeros(1, 24)
    score[0, 8:16] = 1e30
    alone = [True] * 4 + [False] * 4
    assert select_grouped(score, 4, 8).tolist() == [alone * 3]


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("chunk", [8, 16, 24, 48, 1000])
def test_chunk_boundaries_do_not_show(
    monkeypatch: pytest.MonkeyPatch, group: int, chunk: int
) -> None:
    monkeypatch.setattr(grouped, "_CPU_CHUNK", chunk)
    for rows in (1, 2, 3):
        score = drawn_score(rows, 16, "ties", torch.float32, seed=rows)
        expected = expected_mask(score, group // 2, group)
        assert torch.equal(select_grouped(score, group // 2, group), expected)


def test_more_scores_than_one_chunk() -> None:
    score = drawn_score(3, grouped._CPU_CHUNK // 2 + 8, "ties", torch.float32, seed=0)
    assert score.numel() > grouped._CPU_CHUNK
    groups = score.view(-1, 8).numpy()
    order = numpy.argsort(-groups, axis=1, kind="stable")
    expected = numpy.zeros(groups.shape, dtype=bool)
    numpy.put_along_axis(expected, order[:, :3], True, axis=1)
    assert (select_grouped(score, 3, 8).view(-1, 8).numpy() == expected).all()


def test_memory_that_was_never_written_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_of_rubbish(
        shape: torch.Size, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        assert dtype == torch.bool
        return torch.full(shape, 0xFF, dtype=torch.uint8, device=device).view(dtype)

    score = drawn_score(2, 24, "ties", torch.float32, seed=5)
    expected = {group: expected_mask(score, 1, group) for group in (2, 4, 8)}
    monkeypatch.setattr(torch, "empty", full_of_rubbish)
    masks = {group: select_grouped(score, 1, group) for group in expected}
    monkeypatch.undo()
    for group, mask in masks.items():
        assert torch.equal(mask, expected[group])
        assert mask.view(torch.uint8).max() <= 1


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (3, 6)])
@pytest.mark.parametrize("shape", [(0, 24), (3, 0), (0, 0)])
def test_nothing_to_choose_from(shape: tuple[int, int], keep: int, group: int) -> None:
    mask = select_grouped(torch.zeros(shape), keep, group)
    assert (mask.shape, mask.dtype) == (shape, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4), (3, 4), (2, 8), (1, 2)])
def test_published_rule_gives_the_same_mask_without_ties(
    keep: int, group: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    # Distinct within a group in any dtype: a shuffle of 1..group times a power of two.
    order = torch.rand(24, 8, group, generator=generator).argsort(dim=2) + 1
    scale = 2.0 ** torch.randint(-3, 4, (24, 8, 1), generator=generator)
    metric = (order * scale).view(24, -1).to(dtype)
    expected = published_mask(metric, group - keep, group)
    assert torch.equal(select_grouped(metric, keep, group), expected)


@pytest.mark.parametrize(("keep", "group"), [(0, 4), (4, 4), (5, 4), (-1, 4), (1, 1), (0, 0)])
def test_keeping_nothing_or_everything_is_refused(keep: int, group: int) -> None:
    message = f"expected 0 < keep < group, got keep={keep}, group={group}"
    with pytest.raises(SecateurError, match=message):
        select_grouped(torch.zeros(4, 8), keep, group)


@pytest.mark.parametrize(("columns", "group"), [(6, 4), (4, 8), (7, 2), (10, 3), (1, 16)])
def test_columns_that_make_no_whole_groups_are_refused(columns: int, group: int) -> None:
    message = rf"divisible by the group of {group}, got score \[4, {columns}\]"
    with pytest.raises(SecateurError, match=message):
        select_grouped(torch.zeros(4, columns), 1, group)


def test_threads_share_large_scores() -> None:
    """More pieces than one thread takes alone, and a last one that is not whole."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(0, 5, (17 * 257, 1024), generator=generator).float()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        mask = select_grouped(score, 2, 4)
    finally:
        torch.set_num_threads(threads)
    order = score.view(-1, 4).argsort(dim=1, descending=True, stable=True)
    expected = torch.zeros(len(order), 4, dtype=torch.bool).scatter_(1, order[:, :2], True)
    assert torch.equal(mask, expected.view(score.shape))
