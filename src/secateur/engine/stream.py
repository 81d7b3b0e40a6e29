"""The pieces of one request, for whoever reads them."""

from collections import deque
from collections.abc import Callable, Iterator

from secateur.engine.result import Piece
from secateur.engine.sequence import Sequence


class PieceStream(Iterator[Piece]):
    """The pieces of one request. Closing it, or letting go of it, cancels what has not come yet.

    No generator: one that was never read from would not notice that it is closed.
    """

    def __init__(
        self,
        sequence: Sequence,
        box: deque[Piece],
        pump: Callable[[], None],
        stop_reading: Callable[[Sequence], None],
    ) -> None:
        self._sequence, self._box = sequence, box
        self._pump, self._stop_reading = pump, stop_reading
        self._closed = False

    def __next__(self) -> Piece:
        """The next piece, computed where none is there.

        Raises:
            StopIteration: the last one was read, or the stream was closed.
        """
        try:
            while not self._closed and not self._box and self._sequence.result is None:
                self._pump()
        except BaseException:
            self.close()
            raise
        if self._closed or not self._box:
            raise StopIteration
        return self._box.popleft()

    def close(self) -> None:
        """Cancel the request if it has not ended."""
        if not self._closed:
            self._closed = True
            self._stop_reading(self._sequence)

    def __del__(self) -> None:
        """As `close`."""
        self.close()
