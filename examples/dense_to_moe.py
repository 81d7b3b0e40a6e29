"""Turn the dense MLPs of a small Llama-like model into mixtures of experts, and tune every block.

    python examples/dense_to_moe.py

An example of surgery that Secateur does not know, tuned by its regional optimizer all the same:
`secateur.reconstruct.optimize` takes any student block against any teacher block.

The experts follow CMoE (arXiv 2502.04416), without training: neurons that fire for nearly every
token become shared experts, those that fire for the same tokens an expert of their own each, and
the router is made of one neuron from each expert. In place of its linear assignment, neurons take
the nearest expert that has room, the nearest pairs first.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from secateur.calibration.data import load_calibration
from secateur.calibration.inputs import BlockInputs, capture_inputs
from secateur.calibration.statistics import RelativeError
from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.load import load_with_tokenizer, silence_transformers
from secateur.errors import SecateurError
from secateur.evaluate.perplexity import encode_text, perplexity
from secateur.models.blocks import BlockList, find_blocks
from secateur.models.trace import trace_blocks
from secateur.reconstruct import BlockSamples, ReconstructionSettings, optimize, stored_targets

TOKENS_PER_BATCH = 1024
ACTIVE_NEURONS = 10
"""CMoE's K_act: the neurons that count as firing for a token."""


@dataclass(frozen=True)
class Shape:
    """How an MLP is divided."""

    num_experts: int = 8
    num_shared: int = 2
    """Of the experts, those that every token passes."""
    num_active: int = 3
    """Of the others, those that a token passes."""

    def __post_init__(self) -> None:
        routed = self.num_experts - self.num_shared
        if not (self.num_shared >= 1 and 1 <= self.num_active <= routed):
            raise SecateurError(
                "expected at least one shared expert and num_active of at least 1 and at most the "
                f"others, got {self.num_experts} experts, {self.num_shared} shared, "
                f"{self.num_active} active"
            )

    def expert_size(self, num_neurons: int) -> int:
        """Neurons of an expert."""
        if num_neurons % self.num_experts:
            raise SecateurError(
                f"expected a number of neurons that {self.num_experts} experts divide, "
                f"got {num_neurons}"
            )
        return num_neurons // self.num_experts


@dataclass(frozen=True)
class Grouping:
    """Which neuron goes where."""

    shared: Tensor
    """int64 [num_shared * size]."""
    routed: Tensor
    """int64 [num_experts - num_shared, size]."""
    representatives: Tensor
    """int64 [num_experts - num_shared]: of each routed expert, its most typical neuron."""


def group_neurons(firing: Tensor, shape: Shape) -> Grouping:
    """Group the neurons of an MLP by the tokens that they fire for.

    Args:
        firing: bool [tokens, neurons].
        shape: of the groups.
    """
    marks = firing.float()
    count = marks.sum(dim=0)
    size = shape.expert_size(firing.shape[1])
    order = count.argsort(descending=True, stable=True)
    num_shared = shape.num_shared * size
    shared, rest = order[:num_shared], order[num_shared:]
    # L1 distance of two columns of zeros and ones: fires here or there, but not in both.
    columns = marks[:, rest]
    together = columns.T @ columns[:, : shape.num_experts - shape.num_shared]
    seeds = count[rest][: together.shape[1]]
    distance = count[rest][:, None] + seeds - 2.0 * together
    routed = rest[_nearest_with_room(distance, size)]
    typical = [_most_typical(marks[:, members]) for members in routed]
    return Grouping(shared.sort().values, routed, routed.gather(1, torch.stack(typical)).flatten())


def _nearest_with_room(distance: Tensor, size: int) -> Tensor:
    """[groups, size]: rows of `distance` [rows, groups] in equal groups, nearest pairs first."""
    members: list[list[int]] = [[] for _ in range(distance.shape[1])]
    placed: set[int] = set()
    for place in distance.flatten().argsort(stable=True).tolist():
        row, group = divmod(place, distance.shape[1])
        if row not in placed and len(members[group]) < size:
            members[group].append(row)
            placed.add(row)
    return torch.tensor(members)


def _most_typical(marks: Tensor) -> Tensor:
    """[1]: the column nearest to the mean of all."""
    return (marks - marks.mean(dim=1, keepdim=True)).square().sum(dim=0).argmin(keepdim=True)


class RoutedMlp(nn.Module):
    """Shared experts, and of the others those that a router chooses for each token.

    With as many experts active as there are, this is the dense MLP.
    """

    def __init__(self, mlp: nn.Module, grouping: Grouping, num_active: int) -> None:
        super().__init__()
        gate, up, down, self.act = _parts(mlp)
        self.num_active = num_active
        self.shared_gate = nn.Parameter(gate[grouping.shared].clone())
        self.shared_up = nn.Parameter(up[grouping.shared].clone())
        self.shared_down = nn.Parameter(down[:, grouping.shared].clone())
        self.gate = nn.Parameter(gate[grouping.routed].clone())
        self.up = nn.Parameter(up[grouping.routed].clone())
        self.down = nn.Parameter(down[:, grouping.routed].transpose(0, 1).clone())
        self.router_gate = nn.Parameter(F.normalize(gate[grouping.representatives], dim=-1))
        self.router_up = nn.Parameter(F.normalize(up[grouping.representatives], dim=-1))
        # An expert counts 1 + weight * score: at first all that are chosen count alike.
        self.router_weight = nn.Parameter(gate.new_zeros(len(grouping.routed)))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] to the same."""
        tokens = hidden.flatten(0, -2)
        shared = self.act(tokens @ self.shared_gate.T) * (tokens @ self.shared_up.T)
        output = shared @ self.shared_down.T
        score = (self.act(tokens @ self.router_gate.T) * (tokens @ self.router_up.T)).abs()
        score = score.softmax(dim=-1)
        chosen = score.topk(self.num_active, dim=-1).indices
        share = 1.0 + self.router_weight * score
        for expert in range(len(self.gate)):
            rows = (chosen == expert).any(dim=-1).nonzero().flatten()
            routed = tokens[rows]
            inner = self.act(routed @ self.gate[expert].T) * (routed @ self.up[expert].T)
            part = (inner @ self.down[expert].T) * share[rows, expert, None]
            output = output.index_add(0, rows, part)
        return output.view_as(hidden)


def _parts(mlp: nn.Module) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Weights of gate, up [neurons, width] and down [width, neurons], and the activation."""
    names = ("gate_proj", "up_proj", "down_proj")
    linears = [getattr(mlp, name, None) for name in names]
    plain = [x for x in linears if isinstance(x, nn.Linear) and x.bias is None]
    if len(plain) < len(names):
        raise SecateurError(
            f"expected an MLP with {', '.join(names)} without bias, as Llama's, "
            f"got {type(mlp).__name__}"
        )
    gate, up, down = (linear.weight.detach() for linear in plain)
    return gate, up, down, mlp.act_fn  # type: ignore[return-value]


def firing_neurons(mlp: nn.Module, inputs: Tensor) -> Tensor:
    """bool [tokens, neurons]: of each token, the neurons that fire most.

    Tokens and weights are compared by direction, as in CMoE.

    Args:
        mlp: gate, up and down.
        inputs: [tokens, width], what enters it.
    """
    gate, up, _, act = _parts(mlp)
    unit = F.normalize(inputs, dim=-1)
    inner = act(unit @ F.normalize(gate, dim=-1).T) * (unit @ F.normalize(up, dim=-1).T)
    most = inner.abs().topk(min(ACTIVE_NEURONS, inner.shape[1]), dim=-1).indices
    return torch.zeros_like(inner, dtype=torch.bool).scatter_(1, most, True)


@dataclass(frozen=True)
class BlockErrors:
    """Relative error of one block's output on inputs from the converted blocks before it."""

    converted: float
    tuned: float


def convert(
    model: Any, tokens: CalibrationTokens, shape: Shape, settings: ReconstructionSettings | None
) -> Iterator[BlockErrors]:
    """Convert a model's blocks in place, one at a time.

    Args:
        model: Llama-like, fp32, on the CPU.
        tokens: to calibrate on.
        shape: of every MLP.
        settings: of the regional optimizer; None to leave blocks as they come.

    Raises:
        SecateurError: an MLP of another kind, or neurons that experts do not divide.
    """
    blocks = find_blocks(model)
    inputs = _entering(model, blocks, tokens)
    for index, block in enumerate(blocks.modules):
        samples = BlockSamples(inputs.hidden, tuple(calls[index] for calls in inputs.calls))
        mlp = _mlp_of(block)
        entering: list[Tensor] = []
        hook = mlp.register_forward_pre_hook(lambda _, args, into=entering: into.append(args[0]))
        # The block is still dense: what it gives is what the student is to give.
        inputs.run_block(block, index)
        hook.remove()
        firing = firing_neurons(mlp, torch.cat([part.flatten(0, 1) for part in entering]))
        block.mlp = RoutedMlp(mlp, group_neurons(firing, shape), shape.num_active)
        before = after = _error(inputs, block, index)
        if settings is not None:
            optimize(block, stored_targets(inputs.outputs, samples), samples, settings)
            after = _error(inputs, block, index)
        for hidden, output in zip(inputs.hidden, inputs.stream(block, index), strict=True):
            hidden.copy_(output)
        yield BlockErrors(before, after)


def _mlp_of(block: Any) -> nn.Module:
    mlp = getattr(block, "mlp", None)
    if not isinstance(mlp, nn.Module):
        raise SecateurError(f"expected blocks with an `mlp`, got {type(block).__name__}")
    return mlp


def _entering(model: Any, blocks: BlockList, tokens: CalibrationTokens) -> BlockInputs:
    first = tokens.batches(TOKENS_PER_BATCH)[0][:1, :8]
    trace = trace_blocks(model, blocks, {}, first)
    return capture_inputs(model, blocks, trace, tokens, TOKENS_PER_BATCH, torch.device("cpu"))


def _error(inputs: BlockInputs, block: nn.Module, index: int) -> float:
    error = RelativeError()
    for wanted, output in zip(inputs.outputs, inputs.stream(block, index), strict=True):
        error.add(output, wanted)
    return error.value


def main(
    model: Annotated[Path, typer.Option(help="Model folder, Llama-like.")] = Path(
        "examples/books-8m"
    ),
    calibration: Annotated[Path, typer.Option(help="Text to calibrate on.")] = Path(
        "examples/books-8m/calibration.txt"
    ),
    text: Annotated[Path, typer.Option(help="Text to measure on.")] = Path(
        "examples/books-8m/evaluation.txt"
    ),
    num_experts: Annotated[int, typer.Option(help="Into which every MLP is divided.")] = 8,
    num_shared: Annotated[int, typer.Option(help="Of these, for every token.")] = 2,
    num_active: Annotated[int, typer.Option(help="Of the others, for each token.")] = 3,
    num_samples: Annotated[int, typer.Option(help="Calibration windows.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens in a window, of both texts.")] = 256,
    rounds: Annotated[int, typer.Option(help="Of the regional optimizer.")] = 3,
) -> None:
    """Convert a model twice, without and with tuning, and print what both keep."""
    silence_transformers()
    started = perf_counter()
    shape = Shape(num_experts, num_shared, num_active)
    loaded = load_with_tokenizer(model, dtype="float32")
    tokens = load_calibration(
        calibration, loaded.tokenizer, num_samples=num_samples, max_seq_length=length
    )
    token_ids = encode_text(loaded.tokenizer, text.read_text(encoding="utf-8"))
    converted = deepcopy(loaded.model)
    for _ in convert(converted, tokens, shape, None):
        pass
    tuned = deepcopy(loaded.model)
    typer.echo("block   relative error   after tuning")
    for index, error in enumerate(
        convert(tuned, tokens, shape, ReconstructionSettings(rounds=rounds))
    ):
        typer.echo(f"{index:5}   {error.converted:14.3f}   {error.tuned:12.3f}")
    share = (num_shared + num_active) / num_experts
    typer.echo(f"perplexity with {share:.0%} of each MLP's neurons at work for a token:")
    for name, network in (("dense", loaded.model), ("converted", converted), ("tuned", tuned)):
        typer.echo(f"{name:10} {perplexity(network, token_ids, length).perplexity:8.2f}")
    typer.echo(f"{perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
