"""The iterable dataset: windows made while they are asked for."""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from random import Random

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from secateur.training.data.blocks import Tally
from secateur.training.data.encode import Encoder
from secateur.training.data.windows import training_item

Item = dict[str, Tensor]


class StreamedWindows(IterableDataset[Item]):
    """Windows in the order of the text, or drawn at random out of a buffer.

    The order depends on seed and epoch alone, so that every process sees the same. Dividing the
    windows among processes is left to accelerate, as Trainer uses it: with `dispatch_batches` (its
    default for iterable datasets) the main process reads and sends the others their share;
    without, each reads everything and keeps its own share (`IterableDatasetShard`). Both count on
    the same order everywhere. Among the workers of one DataLoader each keeps every n-th window,
    though all of them tokenise everything: more than one worker gains nothing.

    Args:
        encoder: makes the windows.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another draw."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Item]:
        windows = self._in_order()
        worker = get_worker_info()
        if worker is not None:
            windows = islice(windows, worker.id, None, worker.num_workers)
        text = self._encoder.text
        # The text of both numbers: no two pairs give the same.
        return drawn(windows, text.shuffle_buffer, Random(f"{text.seed} {self._epoch}"))

    def _in_order(self) -> Iterator[Item]:
        is_packed = self._encoder.format == "chat" and self._encoder.text.pack
        for block in self._encoder.windows(Tally()):
            for row, tokens in enumerate(block.tokens):
                loss = None if block.loss is None else block.loss[row]
                starts = block.starts[row] if is_packed and block.starts is not None else None
                yield training_item(tokens, loss, starts)


class EndlessPasses(IterableDataset[Item]):
    """A stream again and again, each pass in an order of its own.

    The Trainer does not know how long a stream is. At its end it would neither take a step on what
    is left of one nor drop that, and a training that is resumed would begin with another pass.

    Args:
        windows: of one pass; at least one.
    """

    def __init__(self, windows: StreamedWindows) -> None:
        super().__init__()
        self._windows = windows

    def __iter__(self) -> Iterator[Item]:
        for number in count():
            self._windows.set_epoch(number)
            yield from self._windows


def drawn(items: Iterable[Item], buffer_size: int, random: Random) -> Iterator[Item]:
    """The items, each drawn at random out of `buffer_size` of them; 0: in order."""
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
        elif buffer:
            place = random.randrange(len(buffer))
            buffer[place], item = item, buffer[place]
            yield item
        else:
            yield item
    random.shuffle(buffer)
    yield from buffer
