"""Text as its tokens come: whole characters only, and an end at stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_REPLACEMENT = "�"
_CONTEXT = 6
# A character has at most four bytes, so that at most three tokens can be waiting for a fourth.
_MOST_WAITING = 4


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of tokens."""


class IncrementalText:
    """Decodes tokens one at a time.

    Tokens are decoded with some before them, as tokenizers treat the start of a text apart (a
    space is dropped, say). What ends within a character waits for the rest of it.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._context, self._waiting = self._split(prompt)
        self._starts: list[int] = []
        """Places of the context at which a character begins."""
        self._before = self._decode(self._context)
        self._begun = self._decode(self._waiting) if self._waiting else ""
        """What stands for a character that the prompt began: not new, unless it gets whole."""

    def add(self, token_id: int) -> str:
        """Text that is certain now; may be empty."""
        self._waiting.append(token_id)
        text = self._decode(self._context + self._waiting)
        if not text.endswith(_REPLACEMENT):
            return self._take(len(self._waiting), text)
        if len(self._waiting) <= _MOST_WAITING:
            return ""
        return self._take_some(text)

    def flush(self) -> str:
        """What is left at the end; replacement characters where bytes are missing."""
        return self._take(len(self._waiting), self._decode(self._context + self._waiting))

    def _split(self, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
        """The prompt's last tokens, and after them those of a character that it only begins."""
        for begun in range(min(_MOST_WAITING, len(prompt) + 1)):
            last = len(prompt) - begun
            # A context that begins within a character may have no character whole.
            for more in range(_MOST_WAITING):
                first = max(0, last - _CONTEXT - more)
                context = list(prompt[first:last])
                if not self._decode(context).endswith(_REPLACEMENT):
                    return context, list(prompt[last:])
        return list(prompt[-_CONTEXT:]), []

    def _take_some(self, text: str) -> str:
        """Bytes that are no text: let go of the oldest that are not part of a later character."""
        for count in range(len(self._waiting) - _MOST_WAITING + 1, 0, -1):
            head = self._decode(self._context + self._waiting[:count])
            context = (self._context + self._waiting[:count])[-_CONTEXT:]
            tail = self._new(self._decode(context), self._decode(context + self._waiting[count:]))
            if tail is not None and head + tail == text:
                return self._take(count, head)
        return ""

    def _take(self, count: int, text: str) -> str:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        new = self._new(self._before, text)
        # Bytes that are no text may have spoiled what is known already: they come alone.
        new = self._decode(taken) if new is None else new
        self._remember(taken)
        begun, self._begun = self._begun, ""
        return new.removeprefix(begun)

    def _remember(self, taken: list[int]) -> None:
        """Have tokens in the context, and forget the oldest, as many as make up whole characters.

        Of characters next to each other some decoders (SentencePiece's with bytes for what it has
        no token for) show none if one of them is not whole.
        """
        self._starts.append(len(self._context))
        self._context += taken
        enough = [start for start in self._starts if len(self._context) - start >= _CONTEXT]
        first = max(enough, default=0)
        self._context = self._context[first:]
        self._starts = [start - first for start in self._starts if start > first]
        self._before = self._decode(self._context)

    @staticmethod
    def _new(before: str, text: str) -> str | None:
        return text[len(before) :] if text.startswith(before) else None

    def _decode(self, token_ids: list[int]) -> str:
        return self._decoder.decode(token_ids, skip_special_tokens=True)


@dataclass
class StopStrings:
    """Holds back what may be the start of a stop string."""

    stop: tuple[str, ...]
    found: bool = False
    _held: str = ""

    def add(self, text: str) -> str:
        """Text up to the first stop string, if there is one, or what cannot be part of one."""
        held = self._held + text
        places = [place for place in map(held.find, self.stop) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max((_overlap(held, stop) for stop in self.stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back; the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
