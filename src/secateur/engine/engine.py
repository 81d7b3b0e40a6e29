"""Text from a model on one device, for one caller or for many at the same time."""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractContextManager, nullcontext
from operator import index
from typing import Any

import torch
from torch import nn

from secateur.engine.decode import DecodeShape, DecodeSteps
from secateur.engine.device_rows import DeviceRows
from secateur.engine.family import RowModel, check_agrees, row_model
from secateur.engine.graphs import GraphCapture
from secateur.engine.options import GenerationOptions, require_whole
from secateur.engine.prefill import rehearse_chunk
from secateur.engine.result import Piece, Result
from secateur.engine.sampling import SamplingKind
from secateur.engine.scheduler import Scheduler
from secateur.engine.sequence import Sequence
from secateur.engine.stream import PieceStream
from secateur.errors import SecateurError
from secateur.models.blocks import context_length, text_config
from secateur.models.device import input_embedding

Prompt = str | SequenceOf[int]
"""Text, which the tokenizer turns into tokens, or token ids as they are."""

PREFILL_CHUNK = 2048
# The cache's length is a multiple of this: of a block of flex attention, which suits kernels with
# masks as well.
_GRANULE = 128
_USUAL_LENGTH = 4096
_GREEDY = GenerationOptions()


class Engine:
    """Generates with a static cache, in batches whose members come and go.

    The model may be dense or hold compressed layers, whole or with blocks and sub-layers removed.
    It runs unchanged; only while a step runs is its attention replaced by one with the same
    result (torch's scaled dot-product attention).

    Threads: `submit` and `cancel` may be called from any thread. `step`, `generate`, `stream` and
    `warm_up` belong to one thread at a time. If `step` fails, the engine is not to be used again.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any | None = None,
        *,
        max_batch_size: int = 8,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        compile: bool | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        cuda_graphs: bool | None = None,
        attention: str = "sdpa",
    ) -> None:
        """Take memory for keys and values, and try the model on a few tokens.

        Args:
            model: a causal language model of transformers; put in evaluation mode.
            tokenizer: without one prompts are token ids, and results have no text.
            max_batch_size: requests that decode at the same time; more wait.
            max_length: tokens of a request, prompt and continuation; by default the model's
                context, at most 4096. Memory for keys and values grows with both.
            device: where the model is moved; by default it stays where it is.
            compile: compile decode steps with `torch.compile`, by default on a GPU: each kind of
                block once, and no program reaches beyond a block. The first step of one row, and
                of several, then takes long; see `warm_up`.
            prefill_chunk: tokens of prompts that are computed at a time, which bounds memory.
            cuda_graphs: replay decode steps from CUDA graphs, by default on a GPU.
            attention: how compiled decode steps attend: `sdpa` reads as many keys as the next of
                a few lengths; `flex` reads what each row has and splits long texts, and is compiled
                anew for each number of rows.

        Raises:
            SecateurError: a number is out of range, CUDA graphs are asked for elsewhere than on
                a GPU, flex attention without compilation, off a GPU or for a model with an
                attention of its own, or the model's family cannot work like this; or blocks are
                to be compiled and none are found.
        """
        if not isinstance(model, nn.Module):
            raise SecateurError(f"expected a model, but got {model!r}")
        if device is not None:
            model.to(device)
        model.eval()
        self._device = input_embedding(model).device
        self._tokenizer = tokenizer
        self._vocabulary = len(input_embedding(model))
        self.max_batch_size = _at_least_one("max_batch_size", max_batch_size)
        self.max_length = _length(model, max_length)
        self._prefill_chunk = _at_least_one("prefill_chunk", prefill_chunk)
        self._model = row_model(model)
        compiled = self._on_gpu if compile is None else compile
        graphs = _graphs(cuda_graphs, self._device)
        flex = _flex(attention, compiled, self._model)
        length = _GRANULE * math.ceil(self.max_length / _GRANULE)
        self._store = self._model.store(max_batch_size, length)
        with self._on_device():
            self._rows = DeviceRows(max_batch_size, length, check_agrees(self._model, self._store))
            self._decode = DecodeSteps(
                self._model,
                self._store,
                self._rows,
                compiled=compiled,
                capture=GraphCapture(self._device) if graphs else None,
                flex=flex,
            )
        self._scheduler = Scheduler(
            self._model, self._store, self._rows, self._decode, self._prefill_chunk
        )
        self._eos = _eos(model, tokenizer)
        self._ids = itertools.count()
        self._boxes: dict[int, deque[Piece]] = {}
        """By request of `generate` and `stream`: pieces not read yet; gone with the last."""
        self._unread: list[Piece] = []
        """Pieces of all other requests, for `step` to hand out."""

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _on_device(self) -> AbstractContextManager[object]:
        """While this is open, streams and events are those of the model's GPU."""
        return torch.cuda.device(self._device) if self._on_gpu else nullcontext()

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values of all rows."""
        return self._store.nbytes

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to hand out."""
        return bool(self._unread) or self._scheduler.has_work

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one of those to end."""
        return self._scheduler.num_waiting

    def submit(self, prompt: Prompt, options: GenerationOptions = _GREEDY) -> int:
        """Queue a request; its pieces come out of `step`, marked with the number returned.

        Raises:
            SecateurError: the prompt is empty or does not fit with `max_new_tokens`, its tokens
                are none of the model's, or it or a stop string needs a tokenizer that is not there.
        """
        sequence = self._sequence(prompt, options)
        self._scheduler.submit(sequence)
        return sequence.request_id

    def cancel(self, request_id: int) -> None:
        """End a request; its last piece says `cancelled`. Without effect if it has ended."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[Piece]:
        """Compute a chunk of prompts and a token for every running request.

        Returns:
            What has reached the host: on a GPU the tokens of a step before. A request's pieces
            come in order, and exactly one of them, the last, has a result.
        """
        self._pump()
        pieces, self._unread = self._unread, []
        return pieces

    def generate(
        self,
        prompts: SequenceOf[Prompt],
        options: GenerationOptions | SequenceOf[GenerationOptions] = _GREEDY,
    ) -> list[Result]:
        """Continue prompts, as many at a time as the engine has rows.

        Args:
            options: of all prompts, or one a prompt.

        Returns:
            One result a prompt, in their order.

        Raises:
            SecateurError: as `submit`, before anything runs; or there are not as many options as
                prompts.
        """
        if isinstance(prompts, str | Mapping):
            kind = "string" if isinstance(prompts, str) else type(prompts).__name__
            raise SecateurError(f"expected a list of prompts, got a {kind}")
        each = [options] * len(prompts) if isinstance(options, GenerationOptions) else list(options)
        if len(each) != len(prompts):
            raise SecateurError(f"expected options for {len(prompts)} prompts, got {len(each)}")
        sequences = [self._sequence(*pair) for pair in zip(prompts, each, strict=True)]
        self._run(sequences)
        return [sequence.result for sequence in sequences if sequence.result is not None]

    def stream(self, prompt: Prompt, options: GenerationOptions = _GREEDY) -> PieceStream:
        """Continue one prompt, piece by piece. Closing the iterator cancels the request.

        Raises:
            SecateurError: as `submit`, at once.
        """
        sequence = self._sequence(prompt, options)
        box = self._boxes[sequence.request_id] = deque()
        self._scheduler.submit(sequence)
        return PieceStream(sequence, box, self._pump, self._stop_reading)

    def warm_up(
        self,
        batch_sizes: SequenceOf[int] | None = None,
        lengths: SequenceOf[int] | None = None,
        options: Iterable[GenerationOptions] = (_GREEDY,),
    ) -> None:
        """Compile and capture decode steps beforehand, so that no request waits for it.

        On a GPU chunks of prompts are computed as well, for kernels and the memory that they take.
        Without effect where nothing is compiled or captured.

        Args:
            batch_sizes: by default all up to `max_batch_size`.
            lengths: of the longest request in a batch; by default `max_length`, and shorter.
            options: a step is made for each kind of sampling among them.

        Raises:
            SecateurError: a number is out of range, or a step cannot be captured.
        """
        sizes = range(1, self.max_batch_size + 1) if batch_sizes is None else batch_sizes
        reach = range(1, self.max_length + 1) if lengths is None else lengths
        _require_within("batch size", sizes, self.max_batch_size)
        _require_within("length", reach, self.max_length)
        if not self._decode.few_shapes:
            return
        # Rows and lengths are rounded apart from each other; pairs of both can be millions.
        batches = sorted({self._decode.shape(size, 1).batch for size in sizes})
        longest = sorted({self._decode.shape(1, length).length for length in reach})
        shapes = itertools.starmap(DecodeShape, itertools.product(batches, longest))
        kinds = {self._kind(each) for each in options}
        with self._on_device():
            for shape, kind in itertools.product(shapes, kinds):
                self._decode.prepare(shape, kind)
            if self._on_gpu:
                for width in _chunk_widths(min(self._prefill_chunk, self.max_length)):
                    rehearse_chunk(width, self._model, self._store, self._rows)

    def _kind(self, options: GenerationOptions) -> SamplingKind:
        return Sequence(-1, (0,), options, None, self._eos).kind

    def _sequence(self, prompt: Prompt, options: GenerationOptions) -> Sequence:
        if not isinstance(options, GenerationOptions):
            raise SecateurError(f"expected GenerationOptions, but got {options!r}")
        token_ids = self._token_ids(prompt)
        if options.stop and self._tokenizer is None:
            raise SecateurError("stop strings need a tokenizer, and the engine has none")
        total = len(token_ids) + options.max_new_tokens
        if total > self.max_length:
            raise SecateurError(
                f"expected at most {self.max_length} tokens, the engine's max_length, but the "
                f"prompt has {len(token_ids)} and {options.max_new_tokens} are to follow"
            )
        return Sequence(next(self._ids), token_ids, options, self._tokenizer, self._eos)

    def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise SecateurError("expected token ids, as the engine has no tokenizer, got text")
            prompt = self._tokenizer.encode(prompt) if prompt else []
        token_ids = _whole_numbers(prompt)
        if not token_ids:
            raise SecateurError("expected a prompt to continue, but got an empty one")
        wrong = [token for token in token_ids if not 0 <= token < self._vocabulary]
        if wrong:
            raise SecateurError(
                f"expected token ids from 0 to {self._vocabulary - 1}, but got {wrong[0]}"
            )
        return token_ids

    def _run(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._boxes[sequence.request_id] = deque()
            self._scheduler.submit(sequence)
        try:
            while any(sequence.result is None for sequence in sequences):
                self._pump()
        finally:
            for sequence in sequences:
                self._stop_reading(sequence)

    def _stop_reading(self, sequence: Sequence) -> None:
        """Cancel a request that has not ended: nobody reads its pieces any more."""
        if sequence.result is None:
            self.cancel(sequence.request_id)

    def _pump(self) -> None:
        """One step of the scheduler; its pieces go to whoever reads them."""
        with self._on_device():
            pieces = self._scheduler.step()
        for piece in pieces:
            find = self._boxes.get if piece.result is None else self._boxes.pop
            find(piece.request_id, self._unread).append(piece)


def _at_least_one(name: str, value: int) -> int:
    require_whole(name, value)
    if value < 1:
        raise SecateurError(f"expected {name} of at least 1, but got {value}")
    return value


def _whole_numbers(prompt: Iterable[Any]) -> tuple[int, ...]:
    try:
        if isinstance(prompt, Mapping):
            raise TypeError
        return tuple(index(token) for token in prompt)
    except TypeError:
        raise SecateurError(
            f"expected a prompt of text or token ids, but got {type(prompt).__name__}"
        ) from None


def _require_within(name: str, values: SequenceOf[int], most: int) -> None:
    for value in values:
        if not 1 <= value <= most:
            raise SecateurError(f"expected a {name} from 1 to {most}, but got {value}")


def _chunk_widths(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most: kernels are chosen by the number of tokens."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _length(model: nn.Module, wanted: int | None) -> int:
    context = context_length(model)
    if wanted is None:
        return min(context or _USUAL_LENGTH, _USUAL_LENGTH)
    if wanted < 2 or (context is not None and wanted > context):
        most = "" if context is None else f" and at most {context}, the model's context"
        raise SecateurError(f"expected max_length of at least 2{most}, but got {wanted}")
    return wanted


def _graphs(wanted: bool | None, device: torch.device) -> bool:
    on_gpu = device.type == "cuda"
    if wanted and not on_gpu:
        raise SecateurError(f"CUDA graphs need a model on a GPU, but it is on {device}")
    return on_gpu if wanted is None else wanted


def _flex(attention: str, compiled: bool, model: RowModel) -> bool:
    if attention not in ("sdpa", "flex"):
        raise SecateurError(f"expected attention sdpa or flex, but got {attention}")
    if attention == "sdpa":
        return False
    device = input_embedding(model.model).device
    if not compiled or device.type != "cuda":
        raise SecateurError(
            "flex attention needs compiled steps on a GPU, but the model is on "
            f"{device} and compile is {compiled}"
        )
    if model.plan.own_attention:
        raise SecateurError(
            "expected a model that takes torch's attention for flex attention, but "
            f"{type(model.model).__name__} has its own"
        )
    return True


def _eos(model: nn.Module, tokenizer: Any | None) -> frozenset[int]:
    """Tokens that end a text: as the model's generation settings say, else its config."""
    for source in (getattr(model, "generation_config", None), text_config(model), tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
