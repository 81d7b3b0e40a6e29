import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.calibration.statistics import CrossMoment, InputStatistics, RelativeError

ROUNDOFF = 2.0**-24
"""Of fp32: the largest relative error of one operation."""


def new_statistics(
    num_columns: int, *, with_hessian: bool = True, num_batches: int = 1
) -> InputStatistics:
    return InputStatistics(
        num_columns,
        with_hessian=with_hessian,
        num_batches=num_batches,
        device=torch.device("cpu"),
    )


def random_inputs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.linspace(0.1, 30.0, shape[-1])


def whole_inputs(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers: sums of their products are exact in fp32, in whatever order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).float()


@pytest.mark.parametrize("with_hessian", [False, True])
def test_norm_is_that_of_a_direct_sum(with_hessian: bool) -> None:
    batches = [random_inputs(3, 50, 20, seed=seed) for seed in range(4)]
    statistics = new_statistics(20, with_hessian=with_hessian)
    for batch in batches:
        statistics.add(batch)
    rows = torch.cat(batches).reshape(-1, 20).double()
    assert statistics.num_tokens == len(rows) == 600
    norm = statistics.input_norm(num_samples=12)
    assert (norm.shape, norm.dtype) == ((20,), torch.float32)
    expected = torch.tensor([float((rows[:, j] ** 2).sum() / 12) ** 0.5 for j in range(20)])
    # All terms are positive: n squares and sums err by at most n + 1 roundings, a root halves
    # that, and division, root and the comparison add one each.
    bound = (len(rows) / 2 + 4) * ROUNDOFF
    torch.testing.assert_close(norm, expected, rtol=bound, atol=0.0)


def test_hessian_is_that_of_a_direct_product() -> None:
    batches = [random_inputs(100, 16, seed=seed) for seed in range(5)]
    statistics = new_statistics(16)
    for batch in batches:
        statistics.add(batch)
    rows = torch.cat(batches).double()
    hessian = statistics.hessian(num_samples=5)
    assert (hessian.shape, hessian.dtype) == ((16, 16), torch.float32)
    error = (hessian.double() - 2 / 5 * rows.T @ rows).abs()
    bound = (len(rows) + 3) * ROUNDOFF * (2 / 5 * rows.abs().T @ rows.abs())
    assert (error <= bound).all()


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    num_samples=st.integers(1, 300),
    with_hessian=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_split_into_batches_changes_nothing(
    sizes: list[int], num_samples: int, with_hessian: bool, seed: int
) -> None:
    rows = whole_inputs(sum(sizes), 6, seed=seed)
    whole, split = (new_statistics(6, with_hessian=with_hessian) for _ in range(2))
    whole.add(rows)
    for part in rows.split(sizes):
        split.add(part)
    assert whole.num_tokens == split.num_tokens == sum(sizes)
    norm = split.input_norm(num_samples)
    assert torch.equal(norm, whole.input_norm(num_samples))
    exact = (rows.double() ** 2).sum(dim=0) / num_samples
    torch.testing.assert_close(norm.double() ** 2, exact, rtol=4 * ROUNDOFF, atol=0.0)
    if with_hessian:
        gram = rows.double().T @ rows.double()
        hessian = split.hessian(num_samples)
        assert torch.equal(hessian, whole.hessian(num_samples))
        assert torch.equal(hessian, hessian.T)
        torch.testing.assert_close(
            hessian.double(), 2 / num_samples * gram, rtol=2 * ROUNDOFF, atol=0.0
        )


@pytest.mark.parametrize("shape", [(24, 5), (4, 6, 5), (2, 3, 4, 5), (24, 1, 5)])
def test_leading_dimensions_are_all_tokens(shape: tuple[int, ...]) -> None:
    inputs = whole_inputs(*shape)
    statistics, flat = new_statistics(5), new_statistics(5)
    statistics.add(inputs)
    for row in inputs.reshape(-1, 5):
        flat.add(row)
    assert statistics.num_tokens == flat.num_tokens == 24
    assert torch.equal(statistics.hessian(1), flat.hessian(1))


@pytest.mark.parametrize("with_hessian", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_in_single_precision_whatever_the_inputs(
    dtype: torch.dtype, with_hessian: bool
) -> None:
    # 300^2 overflows fp16, and 8 bits of bf16 cannot count 1024 ones.
    inputs = torch.tensor([[300.0, 1.0]], dtype=dtype).repeat(1024, 1)
    statistics = new_statistics(2, with_hessian=with_hessian)
    statistics.add(inputs)
    norm = statistics.input_norm(num_samples=1)
    assert norm.dtype == torch.float32
    assert norm.tolist() == [300.0 * 32, 32.0]


@pytest.mark.parametrize("with_hessian", [False, True])
def test_non_contiguous_inputs(with_hessian: bool) -> None:
    inputs = whole_inputs(6, 7, 4)
    for view in (inputs.transpose(0, 1), inputs[:, ::2], inputs.permute(1, 2, 0)):
        statistics = new_statistics(view.shape[-1], with_hessian=with_hessian)
        statistics.add(view)
        squares = (view.reshape(-1, view.shape[-1]) ** 2).sum(dim=0)
        torch.testing.assert_close(statistics.input_norm(1), squares.sqrt())


def test_reading_does_not_change_the_sums() -> None:
    statistics = new_statistics(3)
    statistics.add(whole_inputs(4, 3))
    first = statistics.hessian(2)
    first.fill_(0.0)
    statistics.input_norm(2).fill_(0.0)
    assert statistics.hessian(2).any()
    statistics.add(whole_inputs(4, 3))
    assert torch.equal(statistics.input_norm(8), (statistics.hessian(8).diagonal() / 2).sqrt())


def test_sample_holds_tokens_as_they_came() -> None:
    # 64 tokens are due a batch; what a short batch lacks, a later one makes up for.
    statistics = new_statistics(4, with_hessian=False, num_batches=4)
    batches = [random_inputs(length, 4, seed=length).bfloat16() for length in (200, 10, 64, 127)]
    for batch in batches:
        statistics.add(batch)
    sample = statistics.sample()
    assert sample.dtype == torch.bfloat16
    parts = [batches[0][: 3 * 64 : 3], batches[1], batches[2], batches[3][:118]]
    assert torch.equal(sample, torch.cat(parts))


def test_sample_shares_no_memory_with_the_inputs() -> None:
    statistics = new_statistics(4, with_hessian=False)
    batch = whole_inputs(5, 4)
    statistics.add(batch)
    before = batch.clone()
    batch.zero_()
    assert torch.equal(statistics.sample(), before)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6), expected=st.integers(1, 400))
def test_sample_is_bounded_whatever_comes(sizes: list[int], expected: int) -> None:
    statistics = new_statistics(1, with_hessian=False, num_batches=expected)
    rows = torch.arange(1.0, sum(sizes) + 1).view(-1, 1)
    for part in rows.split(sizes):
        statistics.add(part)
    sample = statistics.sample()
    taken = 0
    for seen, size in enumerate(sizes, start=1):
        due = min(256, -(-256 * seen // expected))
        taken += min(size, due - taken)
    assert len(sample) == taken
    # Tokens that came, in their order and none of them twice.
    assert torch.equal(sample, sample.unique(dim=0))
    assert torch.isin(sample, rows).all()


@pytest.mark.parametrize("length", [511, 512, 513, 1024, 1500])
def test_rows_are_summed_in_pieces_that_do_not_show(length: int) -> None:
    inputs = whole_inputs(length, 3)
    statistics = new_statistics(3, with_hessian=False)
    statistics.add(inputs)
    expected = (inputs.double() ** 2).sum(dim=0).float().sqrt()  # the sum is exact
    assert torch.equal(statistics.input_norm(1), expected)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    width=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_relative_error_is_that_of_all_batches_at_once(
    lengths: list[int], width: int, seed: int
) -> None:
    dense = random_inputs(sum(lengths), width, seed=seed)
    pruned = dense + random_inputs(sum(lengths), width, seed=seed + 1) / 10
    error = RelativeError()
    for parts in zip(pruned.split(lengths), dense.split(lengths), strict=True):
        error.add(*parts)
    change = (pruned - dense).double()
    expected = float(torch.linalg.norm(change) / torch.linalg.norm(dense.double()))
    assert error.value == pytest.approx(expected, rel=1e-6)


def test_relative_error_of_equal_and_of_zero_outputs() -> None:
    error = RelativeError()
    assert error.value == 0.0
    # Beside those of other processes, a process without samples counts for nothing.
    assert error.sums == (0.0, 0.0)
    error.add(torch.zeros(2, 3), torch.zeros(2, 3))
    assert error.value == 0.0
    error.add(torch.ones(2, 3), torch.ones(2, 3))
    assert error.value == 0.0
    error.add(torch.zeros(2, 3), torch.ones(2, 3))
    assert error.value == pytest.approx(0.5**0.5)


def test_relative_error_does_not_lose_small_batches_beside_large_ones() -> None:
    error = RelativeError()
    error.add(torch.zeros(1), torch.full((1,), 2.0**12))
    for _ in range(16):
        error.add(torch.zeros(1), torch.tensor([1.0]))
    assert error.sums == (2.0**24 + 16.0, 2.0**24 + 16.0)


def test_relative_error_is_summed_in_double_precision_within_a_batch() -> None:
    # Every square is a whole number below 2^24; their sum is odd and has more bits than fp32.
    dense = torch.arange(1.0, 3002.0)
    error = RelativeError()
    error.add(torch.zeros(3001), dense)
    assert error.sums == (3001 * 3002 * 6003 / 6,) * 2


def test_relative_error_in_half_precision_does_not_overflow() -> None:
    error = RelativeError()
    error.add(torch.zeros(4, dtype=torch.float16), torch.full((4,), 60000.0, dtype=torch.float16))
    assert error.value == 1.0


def test_cross_moments_are_as_exact_as_hessians() -> None:
    """Where both models' inputs are the same, so are both sums, however many batches there are."""
    batch = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    cross = CrossMoment(6, torch.device("cpu"))
    for _ in range(3000):
        cross.add(batch, batch)
    expected = 2.0 / 5 * 3000 * (batch.double().T @ batch.double())
    # Each of eight products and sums is rounded, and the result once.
    torch.testing.assert_close(cross.value(5).double(), expected, rtol=10 * 2.0**-24, atol=0)
