"""Log-likelihoods of many items, with as few tokens and blocks as they need."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from secateur.evaluate.forward import (
    check_batch_size,
    check_token_ids,
    evaluating,
    input_device,
    token_log_probs,
)
from secateur.evaluate.items import Item, MultipleChoice
from secateur.evaluate.scoring import Request, Score
from secateur.evaluate.tasks import item_requests, item_values
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import BlockList, context_length
from secateur.models.entering import OutputForms, entering_at
from secateur.search.suffix import DenseInputs, output_forms
from secateur.search.task import Metric


@dataclass(frozen=True, eq=False)
class ScoringBatch:
    """Some items' requests as one padded batch, and where its scored tokens are.

    Padding stands at the end, where no scored token of a causal model sees it: no mask is needed.
    """

    items: tuple[int, ...]
    """Positions of the items in the list that was batched."""
    num_requests: tuple[int, ...]
    """Of each of them, in the rows' order."""
    input_ids: Tensor
    """int64 [B, L]."""
    positions: Tensor
    """int64 [P], ascending: where in the sequence any logits are needed."""
    rows: Tensor
    """int64 [R]: the row of each scored token."""
    columns: Tensor
    """int64 [R]: its place among `positions`."""
    targets: Tensor
    """int64 [R]: the token itself."""


class Likelihood:
    """What a model makes of fixed items: encoded once, scored as often as it changes."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        blocks: BlockList,
        items: Sequence[Item],
        metric: Metric,
        batch_size: int,
    ) -> None:
        """Encode the items.

        Args:
            batch_size: sequences in a forward pass, more where one item has more.

        Raises:
            SecateurError: a token id that the model does not know, or nothing to predict.
        """
        check_batch_size(batch_size)
        self._model = model
        self._blocks = blocks
        self._items = items
        self._metric = metric
        requests = [item_requests(tokenizer, item, context_length(model)) for item in items]
        self.num_truncated = sum(any(r.is_truncated for r in group) for group in requests)
        self._batches = list(_batches(requests, batch_size))
        for batch in self._batches:
            check_token_ids(model, torch.cat([batch.input_ids.flatten(), batch.targets]))
        self._logits = _chosen_logits(model)
        with evaluating(model):
            self._forms = output_forms(model, blocks, self._batches[0].input_ids)
        self._dense: DenseInputs | None = None

    @property
    def runs_suffixes(self) -> bool:
        """Whether the model can be run from the middle."""
        return self._forms is not None

    def values(self, first_changed: int) -> tuple[float, ...]:
        """The metric of each item.

        Args:
            first_changed: all blocks before this one are dense, and are not computed again.
        """
        scores = self.scores(first_changed)
        return tuple(self._value(*pair) for pair in zip(self._items, scores, strict=True))

    def scores(self, first_changed: int) -> list[list[Score]]:
        """How likely each candidate of each item is; see `values`."""
        scores: dict[int, list[Score]] = {}
        with evaluating(self._model):
            for batch, logits in self._all_logits(first_changed):
                sums, misses = _request_sums(logits, batch)
                rows = iter(zip(sums.tolist(), misses.tolist(), strict=True))
                for item, number in zip(batch.items, batch.num_requests, strict=True):
                    pairs = [next(rows) for _ in range(number)]
                    scores[item] = [Score(s, not m and s > -torch.inf) for s, m in pairs]
        return [scores[index] for index in range(len(self._items))]

    def losses(self) -> Iterator[Tensor]:
        """Batch by batch the sum of the items' losses, for a gradient: float64 scalars.

        Cross entropy among the candidates where the metric is their order, else the negative
        log-likelihood of the answer.
        """
        for batch in self._batches:
            logits = self._logits(batch.input_ids, batch.positions)
            sums, _ = _request_sums(logits, batch)
            parts = torch.split(sums, list(batch.num_requests))
            pairs = zip(parts, batch.items, strict=True)
            yield torch.stack([self._loss(part, self._items[item]) for part, item in pairs]).sum()

    def _all_logits(self, first_changed: int) -> Iterator[tuple[ScoringBatch, Tensor]]:
        if self._forms is None or first_changed == 0:
            for batch in self._batches:
                yield batch, self._logits(batch.input_ids, batch.positions)
            return
        hidden = self._dense_inputs(self._forms).at(first_changed)
        for batch, states in zip(self._batches, hidden, strict=True):
            with entering_at(self._blocks, self._forms, first_changed, states):
                yield batch, self._logits(batch.input_ids, batch.positions)

    def _dense_inputs(self, forms: OutputForms) -> DenseInputs:
        if self._dense is None:
            ids = [batch.input_ids for batch in self._batches]
            self._dense = DenseInputs(self._model, self._blocks, forms, ids)
        return self._dense

    def _value(self, item: Item, scores: list[Score]) -> float:
        if self._metric == "loss":
            return -scores[_answer_index(item)].log_prob
        return item_values(item, scores)["acc"]

    def _loss(self, sums: Tensor, item: Item) -> Tensor:
        if self._metric == "accuracy" and len(sums) > 1:
            sums = sums.log_softmax(dim=0)
        return -sums[_answer_index(item)]


def _answer_index(item: Item) -> int:
    return item.answer if isinstance(item, MultipleChoice) else 0


def _batches(requests: Sequence[list[Request]], batch_size: int) -> Iterator[ScoringBatch]:
    """Whole items, longest first: little padding, and too large a batch fails at once."""
    lengths = [max(len(request.token_ids) for request in group) for group in requests]
    waiting: list[int] = []
    for item in sorted(range(len(requests)), key=lambda index: -lengths[index]):
        number = sum(len(requests[other]) for other in waiting)
        if waiting and number + len(requests[item]) > batch_size:
            yield _batch(waiting, requests)
            waiting = []
        waiting.append(item)
    if waiting:
        yield _batch(waiting, requests)


def _batch(items: list[int], requests: Sequence[list[Request]]) -> ScoringBatch:
    flat = [request for item in items for request in requests[item]]
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    for row, request in enumerate(flat):
        end = len(request.token_ids) - 1
        rows += [row] * request.num_scored
        places += range(end - request.num_scored, end)
        targets += request.token_ids[-request.num_scored :]
    positions, columns = torch.tensor(places).unique(return_inverse=True)
    sequences = [torch.tensor(request.token_ids[:-1]) for request in flat]
    return ScoringBatch(
        items=tuple(items),
        num_requests=tuple(len(requests[item]) for item in items),
        input_ids=pad_sequence(sequences, batch_first=True),
        positions=positions,
        rows=torch.tensor(rows),
        columns=columns,
        targets=torch.tensor(targets),
    )


def _request_sums(logits: Tensor, batch: ScoringBatch) -> tuple[Tensor, Tensor]:
    """Log-probability of each request, and how many of its tokens are not the likeliest.

    Args:
        logits: [B, P, vocabulary], of the batch's `positions`.

    Returns:
        float64 [B] and int64 [B], on the CPU, where sums have one order.
    """
    chosen = logits[batch.rows.to(logits.device), batch.columns.to(logits.device)]
    targets = batch.targets.to(logits.device)
    log_probs = token_log_probs(chosen, targets).double().cpu()
    misses = (chosen.argmax(-1) != targets).long().cpu()
    number = len(batch.input_ids)
    sums = log_probs.new_zeros(number).index_add(0, batch.rows, log_probs)
    return sums, misses.new_zeros(number).index_add(0, batch.rows, misses)


def _chosen_logits(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of token ids [B, L] and positions [P] that gives logits [B, P, vocabulary].

    The head is the largest matrix of a small model: where the model allows, it multiplies only
    what is scored.
    """
    takes_positions = "logits_to_keep" in inspect.signature(model.forward).parameters

    def run(input_ids: Tensor, positions: Tensor) -> Tensor:
        device = input_device(model)
        more = {"logits_to_keep": positions.to(device)} if takes_positions else {}
        logits: Tensor = model(input_ids=input_ids.to(device), use_cache=False, **more).logits
        return logits if takes_positions else logits[:, positions.to(logits.device)]

    return run
