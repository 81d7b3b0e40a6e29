"""A small block whose calls look like a decoder block's, and inputs for it."""

from copy import deepcopy
from math import sqrt

import torch
from torch import Tensor, nn

from secateur.models.replay import BlockCall
from secateur.reconstruct import BlockSamples

WIDTH = 8


class Attention(nn.Module):
    """Mixes tokens by a mask that it is given, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, mix: Tensor) -> tuple[Tensor, None]:
        return self.proj(mix.matmul(hidden_states)), None


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down(nn.functional.silu(self.up(hidden)))
        return output


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and added to the hidden states."""

    def __init__(self, side_by_side: bool = False) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.second_norm = nn.LayerNorm(WIDTH)
        self.mlp = Mlp()
        self.side_by_side = side_by_side

    def forward(self, hidden: Tensor, *, mix: Tensor) -> tuple[Tensor]:
        between = hidden + self.attention(hidden_states=self.first_norm(hidden), mix=mix)[0]
        entering = hidden if self.side_by_side else between
        return (between + self.mlp(self.second_norm(entering)),)


def make_block(seed: int = 0, dtype: torch.dtype = torch.float32) -> Block:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = Block()
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return block.to(dtype).eval()


def make_samples(seed: int = 0, dtype: torch.dtype = torch.float32) -> BlockSamples:
    """Nine samples in three batches of four, three and two; those of the last are shorter."""
    generator = torch.Generator().manual_seed(seed)
    hidden, calls = [], []
    shared = torch.rand(1, 6, 6, generator=generator).tril()
    for size, length in ((4, 6), (3, 6), (2, 5)):
        states = torch.randn(size, length, WIDTH, generator=generator)
        own = torch.rand(size, length, length, generator=generator).tril()
        mix = shared if size == 4 else own
        hidden.append(states.to(dtype))
        calls.append(BlockCall((), {"mix": mix.to(dtype)}, None, (int(mix is own),)))
    return BlockSamples(tuple(hidden), tuple(calls))


def whole_outputs(block: nn.Module, samples: BlockSamples) -> tuple[Tensor, ...]:
    """By batch, without `BlockSamples`' own way of taking batches apart."""
    with torch.no_grad():
        return tuple(
            call(block, hidden) for hidden, call in zip(samples.hidden, samples.calls, strict=True)
        )


def halved(block: nn.Module, seed: int = 1) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with half of every matrix's weights masked away, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    student = deepcopy(block)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in student.named_parameters()
        if parameter.ndim == 2
    }
    return student, masks


def relative_error(student: nn.Module, teacher: nn.Module, samples: BlockSamples) -> float:
    outputs = whole_outputs(student, samples)
    wanted = whole_outputs(teacher, samples)
    pairs = list(zip(outputs, wanted, strict=True))
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return sqrt(difference / sum(float(b.double().square().sum()) for _, b in pairs))
