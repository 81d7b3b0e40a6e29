"""In which form layers should run: from their facts and measured times, with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from secateur.runtime.layers import Form, LayerFacts, problem_of
from secateur_kernels.dispatch import (
    DeviceFacts,
    Policy,
    Table,
    gain_over_dense,
    wants_dense_copy,
)
from secateur_kernels.precision import dtype_name

NO_CLAIM = "reference backend, no speed-up claimed"
_NO_CLAIM_FOR_FACTORS = "nothing measured on this CPU, no speed-up claimed"
# Dense has to be faster by this factor before a packed layer gives way to it.
_DENSE_GAIN = 1.03


@dataclass(frozen=True)
class Verdict:
    """The form in which layers should run."""

    form: Form
    reason: str
    dense_copy: bool = False
    """Whether a dense copy is kept beside the packed 2:4 weight."""


@dataclass(frozen=True)
class Circumstances:
    """What is the same for all layers of one call of `accelerate`."""

    device: DeviceFacts
    table: Table | None
    policy: Policy
    tokens: tuple[int, ...]
    force: bool = False


@dataclass(frozen=True)
class _Measured:
    """Dense time over packed time by number of tokens, as far as it was measured."""

    gains: dict[int, float]
    words: str

    @property
    def mean(self) -> float:
        """The geometric mean, every number of tokens counting the same."""
        return exp(sum(log(gain) for gain in self.gains.values()) / len(self.gains))


def judge(layers: Sequence[LayerFacts], now: Circumstances) -> Verdict:
    """The form for layers that are multiplied together, or for one.

    A dense layer that is exactly 2:4 is packed where that was measured to be faster in the
    geometric mean over the numbers of tokens. Where nothing was measured on a GPU, `memory` packs
    it for its bytes and `strict` does not; on a CPU it stays dense unless forced.
    A layer that is compressed stays so under `memory`; under `strict` it becomes dense where dense
    was measured to be faster at all numbers of tokens, and a 2:4 layer gets a dense copy where
    dense is faster at some.

    Args:
        layers: of one form, dtype and input.
        now: device, measured times and what is wanted.
    """
    first = layers[0]
    if first.form == "dense":
        return _judge_dense(layers, now)
    measured = _measure(layers, first.form, now)
    if now.policy == "memory" or now.force:
        return Verdict(first.form, f"stays compressed; {_claim(first.form, measured, now)}")
    if not measured.gains:
        return Verdict(first.form, f"stays compressed; {_claim(first.form, measured, now)}")
    slower = [m for m, gain in measured.gains.items() if gain * _DENSE_GAIN < 1]
    everywhere = len(slower) == len(measured.gains)
    if everywhere or (first.form != "2:4" and measured.mean < 1):
        return Verdict("dense", f"dense is faster ({measured.words})")
    return _packed(layers, first.form, measured, now)


def _judge_dense(layers: Sequence[LayerFacts], now: Circumstances) -> Verdict:
    first = layers[0]
    if not first.could_be_24:
        return Verdict("dense", "dense weights")
    if not first.is_packable:
        dtype = dtype_name(first.dtype)
        return Verdict("dense", f"2:4, but {dtype} cannot be packed")
    measured = _measure(layers, "2:4", now)
    if now.force:
        return Verdict("2:4", f"forced; {_claim('2:4', measured, now)}")
    if measured.gains and measured.mean > 1:
        return _packed(layers, "2:4", measured, now)
    if measured.gains:
        return Verdict("dense", f"dense is faster ({measured.words})")
    if not now.device.is_gpu:
        return Verdict("dense", f"2:4, stays dense; {NO_CLAIM}")
    if now.policy == "strict":
        return Verdict("dense", f"no gain known: {measured.words}")
    return Verdict("2:4", f"packed for its bytes, no speed-up claimed: {measured.words}")


def _packed(
    layers: Sequence[LayerFacts], form: Form, measured: _Measured, now: Circumstances
) -> Verdict:
    reason = f"{measured.mean:.2f} times as fast as dense ({measured.words})"
    if form != "2:4":
        return Verdict(form, reason)
    problem = problem_of(layers, form, now.tokens[0], now.device)
    wanted, why = wants_dense_copy(problem, now.table, now.policy, now.tokens)
    return Verdict(form, f"{reason}; {why}" if wanted else reason, wanted)


def _claim(form: Form, measured: _Measured, now: Circumstances) -> str:
    if measured.gains:
        return f"{measured.mean:.2f} times as fast as dense ({measured.words})"
    if now.device.is_gpu:
        return measured.words
    return _NO_CLAIM_FOR_FACTORS if form == "low-rank" else NO_CLAIM


def _measure(layers: Sequence[LayerFacts], form: Form, now: Circumstances) -> _Measured:
    gains: dict[int, float] = {}
    words: list[str] = []
    for m in now.tokens:
        gain, how = _gain(layers, form, m, now)
        if gain is not None:
            gains[m] = gain
        if how not in words:
            words.append(how)
    return _Measured(gains, "; ".join(words))


def _gain(
    layers: Sequence[LayerFacts], form: Form, m: int, now: Circumstances
) -> tuple[float | None, str]:
    """Of all layers together, or, where that was not measured, of the one that gains least."""
    together = gain_over_dense(problem_of(layers, form, m, now.device), now.table)
    if together[0] is not None or len(layers) == 1:
        return together
    alone = [gain_over_dense(problem_of([x], form, m, now.device), now.table) for x in layers]
    least = min(alone, key=lambda found: found[0] if found[0] is not None else 0.0)
    return least if least[0] is not None else together
