"""What the device knows of every row, so that a step needs nothing from the host."""

import torch
from torch import Tensor

from secateur.engine.options import GenerationOptions
from secateur.engine.sampling import SamplingRows
from secateur.engine.scoring import Scores
from secateur.engine.transfer import to_device


class DeviceRows:
    """Tensors of all rows; a step of B rows works on the first B of each.

    A row without a sequence is idle: it stands behind all positions that are read.
    """

    def __init__(self, rows: int, length: int, logits: Tensor) -> None:
        """`logits` [..., vocabulary]: an example of the model's, for device, dtype and size."""
        device = logits.device
        self.idle_position = length
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        """The newest token of every row."""
        self.positions = torch.full_like(self.tokens, self.idle_position)
        """Where it stands."""
        self.logits = logits.new_zeros(rows, logits.shape[-1])
        """Behind the newest token of every row: what a forward pass leaves to be chosen from."""
        self.scores = Scores.zeros(rows, logits)
        """Of the newest token of every row, where a row wants it."""
        self.temperature = torch.zeros(rows, dtype=torch.float32, device=device)
        self.top_p = torch.ones(rows, dtype=torch.float32, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(rows, length + 1, dtype=torch.float32, device=device)
        """The random number with which the token behind each position is drawn."""

    def place(self, row: int, options: GenerationOptions, prompt_length: int) -> None:
        """Note a request's options. The row stays idle until `start`."""
        self.temperature[row].fill_(options.temperature)
        self.top_p[row].fill_(options.top_p)
        self.top_k[row].fill_(options.top_k)
        if options.temperature > 0:
            # All of a request's numbers beforehand: no generator in a step, none that rows share.
            generator = torch.Generator().manual_seed(options.seed)
            numbers = torch.rand(options.max_new_tokens, generator=generator)
            first = prompt_length - 1
            target = self.uniform[row, first : first + len(numbers)]
            target.copy_(to_device(numbers, target.device))

    def start(self, row: int, token: Tensor, position: int) -> None:
        """Have a row decode from its first token, int64 [1]."""
        self.tokens[row : row + 1].copy_(token)
        self.positions[row].fill_(position)

    def advance(self, batch: int, tokens: Tensor, scores: Scores | None) -> None:
        """Take the new tokens [batch] of a step."""
        self.tokens[:batch].copy_(tokens)
        self.positions[:batch].add_(1).clamp_(max=self.idle_position)
        if scores is not None:
            self.scores.first(batch).copy_(scores)

    def make_idle(self, row: int) -> None:
        """Free a row."""
        self.positions[row].fill_(self.idle_position)
        self.temperature[row].fill_(0.0)

    def move(self, source: int, target: int) -> None:
        """Continue a row in another place; the old one is idle."""
        for tensor in (self.tokens, self.positions, self.temperature, self.top_p, self.top_k):
            tensor[target].copy_(tensor[source])
        self.uniform[target].copy_(self.uniform[source])
        self.make_idle(source)

    def sampling(self, first: int, positions: Tensor) -> SamplingRows:
        """Options of consecutive rows whose newest tokens stand at `positions` int64 [B]."""
        rows = slice(first, first + len(positions))
        uniform = self.uniform[rows].gather(1, positions.unsqueeze(1)).squeeze(1)
        return SamplingRows(self.temperature[rows], self.top_p[rows], self.top_k[rows], uniform)
