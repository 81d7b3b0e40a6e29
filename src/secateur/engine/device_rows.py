"""What the device knows of every row, so that a step needs nothing from the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.engine.options import GenerationOptions
from secateur.engine.penalties import count_tokens, note_prompt
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
        self.min_p = torch.zeros_like(self.temperature)
        self.repetition = torch.ones_like(self.temperature)
        self.presence = torch.zeros_like(self.temperature)
        self.frequency = torch.zeros_like(self.temperature)
        self.seen = torch.zeros_like(self.logits, dtype=torch.int32)
        """What each text holds, of rows that are penalized for it; see `penalties`."""
        self.uniform = torch.zeros(rows, length + 1, dtype=torch.float32, device=device)
        """The random number with which the token behind each position is drawn."""

    def place(self, row: int, options: GenerationOptions, prompt: Sequence[int]) -> None:
        """Note a request's options. The row stays idle until `start`."""
        self.temperature[row].fill_(options.temperature)
        self.top_p[row].fill_(options.top_p)
        self.top_k[row].fill_(options.top_k)
        self.min_p[row].fill_(options.min_p)
        self.repetition[row].fill_(options.repetition_penalty)
        self.presence[row].fill_(options.presence_penalty)
        self.frequency[row].fill_(options.frequency_penalty)
        if options.penalizes:
            self._note_prompt(row, prompt)
        if options.temperature > 0:
            # All of a request's numbers beforehand: no generator in a step, none that rows share.
            generator = torch.Generator().manual_seed(options.seed)
            numbers = torch.rand(options.max_new_tokens, generator=generator)
            first = len(prompt) - 1
            target = self.uniform[row, first : first + len(numbers)]
            target.copy_(to_device(numbers, target.device))

    def _note_prompt(self, row: int, prompt: Sequence[int]) -> None:
        # A model may have embeddings beyond the tokens that it can choose.
        held = [token for token in set(prompt) if token < self.seen.shape[1]]
        tokens = to_device(torch.tensor(held, dtype=torch.int64), self.seen.device)
        note_prompt(self.seen[row], tokens)

    def start(self, row: int, token: Tensor, position: int) -> None:
        """Have a row decode from its first token, int64 [1]."""
        count_tokens(self.seen[row : row + 1], token, torch.ones_like(token))
        self.tokens[row : row + 1].copy_(token)
        self.positions[row].fill_(position)

    def advance(self, batch: int, tokens: Tensor, scores: Scores | None, counted: bool) -> None:
        """Take the new tokens [batch] of a step; `counted`: some row is penalized for its own."""
        if counted:
            is_active = self.positions[:batch] < self.idle_position
            count_tokens(self.seen[:batch], tokens, is_active)
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
        for tensor in (self.tokens, self.positions, self.uniform, *self._options()):
            tensor[target].copy_(tensor[source])
        self.make_idle(source)

    def sampling(self, first: int, positions: Tensor) -> SamplingRows:
        """Options of consecutive rows whose newest tokens stand at `positions` int64 [B]."""
        rows = slice(first, first + len(positions))
        uniform = self.uniform[rows].gather(1, positions.unsqueeze(1)).squeeze(1)
        chosen_by = (*(tensor[rows] for tensor in self._options()), uniform)
        return SamplingRows(*chosen_by)

    def _options(self) -> tuple[Tensor, ...]:
        """What tokens are chosen by, but for random numbers; in the order of `SamplingRows`."""
        filters = (self.temperature, self.top_p, self.top_k, self.min_p)
        return (*filters, self.repetition, self.presence, self.frequency, self.seen)
