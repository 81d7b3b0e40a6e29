"""Continuous batching: requests join and leave between any two steps, first come first served."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from time import perf_counter

import torch

from secateur.engine.decode import DecodeSteps
from secateur.engine.device_rows import DeviceRows
from secateur.engine.family import RowModel
from secateur.engine.prefill import compute_chunk, next_chunk
from secateur.engine.result import Piece
from secateur.engine.sampling import SamplingKind, next_tokens
from secateur.engine.sequence import Sequence
from secateur.engine.slot_cache import KeyValueStore
from secateur.engine.transfer import Readback


@dataclass(frozen=True)
class _Flight:
    """Tokens of one launch, on their way to the host."""

    number: int
    """Counts what was launched together."""
    sequences: tuple[tuple[int, Sequence], ...]
    """Place among the tokens, and whose token it is."""
    readback: Readback


class Scheduler:
    """Sequences in rows; each step launches a chunk of prompts and a token for every row.

    On a GPU the tokens of a step are waited for while the next one runs, so a sequence that ends
    by what its text says computes one token too many, which is thrown away. What has left its row
    cannot be hurt by the next to use it: the device works in the order of launches. On a CPU, where
    nothing overlaps, first tokens are handed out before the next token of every row is computed.
    """

    def __init__(
        self,
        model: RowModel,
        store: KeyValueStore,
        rows: DeviceRows,
        decode: DecodeSteps,
        prefill_chunk: int,
    ) -> None:
        self._model, self._store, self._rows, self._decode = model, store, rows, decode
        self._prefill_chunk = prefill_chunk
        self._steps_behind = 1 if rows.tokens.is_cuda else 0
        self._number = 0
        self._newest_due = 0
        self._decode_is_due = False
        self._waiting: deque[Sequence] = deque()
        self._in_row: dict[int, Sequence] = {}
        self._flights: deque[_Flight] = deque()
        self._to_cancel: deque[int] = deque()

    @property
    def has_work(self) -> bool:
        """Whether a request waits, runs, or has tokens on their way."""
        return bool(self._waiting or self._in_row or self._flights)

    @property
    def num_running(self) -> int:
        """Requests in rows."""
        return len(self._in_row)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; from any thread."""
        self._waiting.append(sequence)

    def cancel(self, request_id: int) -> None:
        """End a request at the next step, if it is still there; from any thread."""
        self._to_cancel.append(request_id)

    def step(self) -> list[Piece]:
        """Launch what there is to do, and hand out the oldest tokens that are due.

        Nothing is launched while older tokens are: first tokens do not wait for those of the
        decode step that was launched with them.
        """
        pieces = self._cancelled()
        if not self._tokens_are_due:
            self._launch()
        if self._tokens_are_due:
            pieces += self._landed(self._flights.popleft())
        return pieces

    @property
    def _tokens_are_due(self) -> bool:
        return bool(self._flights) and self._flights[0].number <= self._newest_due

    def _launch(self) -> None:
        self._number += 1
        self._admit()
        launched = not self._decode_is_due and self._launch_prefill()
        self._decode_is_due = self._steps_behind == 0 and launched and bool(self._flights)
        if not self._decode_is_due:
            self._close_gaps()
            launched = self._launch_decode() or launched
        # With nothing launched there is nothing to overlap with.
        self._newest_due = self._number - self._steps_behind if launched else self._number

    def _cancelled(self) -> list[Piece]:
        wanted = {self._to_cancel.popleft() for _ in range(len(self._to_cancel))}
        if not wanted:
            return []
        found = [sequence for sequence in self._all_sequences() if sequence.request_id in wanted]
        pieces = []
        for sequence in found:
            if sequence.row is not None:
                self._free(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)
            pieces.append(sequence.cancelled())
        return pieces

    def _all_sequences(self) -> list[Sequence]:
        """Every sequence without a result, once."""
        flying = (one for flight in self._flights for _, one in flight.sequences)
        there = (*list(self._waiting), *self._in_row.values(), *flying)
        return [sequence for sequence in dict.fromkeys(there) if sequence.result is None]

    def _admit(self) -> None:
        free = (row for row in range(self._store.rows) if row not in self._in_row)
        for row in list(free):
            if not self._waiting:
                return
            sequence = self._waiting.popleft()
            sequence.row = row
            self._in_row[row] = sequence
            self._rows.place(row, sequence.options, sequence.prompt)

    def _free(self, sequence: Sequence) -> None:
        assert sequence.row is not None
        del self._in_row[sequence.row]
        self._rows.make_idle(sequence.row)
        sequence.row = None

    @torch.no_grad()
    def _launch_prefill(self) -> bool:
        prefilling = {row: one for row, one in self._in_row.items() if not one.is_prefilled}
        if not prefilling:
            return False
        chunk = next_chunk(prefilling, self._prefill_chunk)
        logits, positions = compute_chunk(chunk, self._model, self._store, self._rows)
        done = [(index, one) for index, one in enumerate(chunk.members) if one.is_prefilled]
        if done:
            kind = _kind(one for _, one in done)
            sampling = self._rows.sampling(chunk.first_row, positions)
            tokens, scores = next_tokens(logits, sampling, kind)
            for index, one in done:
                assert one.row is not None
                self._rows.start(one.row, tokens[index : index + 1], len(one.prompt))
            self._fly(done, Readback(tokens, scores))
        return True

    def _launch_decode(self) -> bool:
        decoding = [(row, one) for row, one in self._in_row.items() if one.is_prefilled]
        if not decoding:
            return False
        batch = 1 + max(row for row, _ in decoding)
        length = max(one.length for _, one in decoding)
        kind = _kind(one for _, one in decoding)
        self._decode.run(self._decode.shape(batch, length), kind)
        scores = self._rows.scores.first(batch) if kind.logprobs else None
        self._fly(decoding, Readback(self._rows.tokens[:batch], scores))
        return True

    def _fly(self, sequences: list[tuple[int, Sequence]], readback: Readback) -> None:
        self._flights.append(_Flight(self._number, tuple(sequences), readback))
        for _, one in sequences:
            one.launched += 1
            if one.launched >= one.options.max_new_tokens:
                self._free(one)

    def _landed(self, flight: _Flight) -> list[Piece]:
        tokens, scores = flight.readback.wait()
        now = perf_counter()
        pieces = []
        for index, sequence in flight.sequences:
            if sequence.result is not None:
                continue
            score = None if scores is None else scores[index]
            pieces.append(sequence.take(tokens[index], score, now))
            if sequence.result is not None and sequence.row is not None:
                self._free(sequence)
        return pieces

    def _close_gaps(self) -> None:
        """Move the last row into a gap where that makes the step's batch smaller."""
        while self._in_row:
            last = max(self._in_row)
            sequence = self._in_row[last]
            gap = next(row for row in range(last + 1) if row not in self._in_row or row == last)
            needed = self._decode.shape(len(self._in_row), 1).batch
            now = self._decode.shape(last + 1, 1).batch
            if needed >= now or gap == last or not sequence.is_prefilled:
                return
            self._store.move(last, gap, sequence.length)
            self._rows.move(last, gap)
            self._in_row[gap] = self._in_row.pop(last)
            sequence.row = gap


def _kind(sequences: Iterable[Sequence]) -> SamplingKind:
    return reduce(or_, (one.kind for one in sequences), SamplingKind())
