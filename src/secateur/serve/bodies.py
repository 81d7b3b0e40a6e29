"""Bodies of responses, as OpenAI's API shapes them: whole ones and the pieces of a stream."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["completion", "chat"]


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One token with its log-probability, natural, before temperature."""

    token: str
    logprob: float | None
    """None of the first token of a prompt: nothing is in front of it."""
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens in its place, the likeliest first; as many as asked for."""
    offset: int = 0
    """Characters of the text in front of it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One finished sequence."""

    index: int
    text: str
    finish_reason: str
    prompt_tokens: int
    """0 for further answers to one prompt."""
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Envelope:
    """What all bodies of one response share."""

    kind: Kind
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    counts_tokens: bool = False
    """Whether a stream ends with a count of tokens; its other pieces then say: none yet."""
    counts_each: bool = False
    """Whether they say instead how many there are so far."""

    def _outer(self, streamed: bool) -> dict[str, Any]:
        chat = self.kind == "chat"
        name = "chat.completion" if chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": name + (".chunk" if chat and streamed else ""),
            "created": self.created,
            "model": self.model,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        shown = [self._whole_choice(choice) for choice in choices]
        return {**self._outer(False), "choices": shown, "usage": _usage_of(choices)}

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        chat = self.kind == "chat"
        text: dict[str, Any] = (
            {"message": {"role": "assistant", "content": choice.text}}
            if chat
            else {"text": choice.text}
        )
        shown = None if choice.logprobs is None else self._logprobs(choice.logprobs)
        return {
            "index": choice.index,
            **text,
            "logprobs": shown,
            "finish_reason": choice.finish_reason,
        }

    def start(self, index: int, so_far: dict[str, int] | None = None) -> dict[str, Any]:
        """The first piece of a chat stream, which says whose turn it is."""
        content = {"delta": {"role": "assistant", "content": ""}}
        return self._piece(index, content, None, so_far=so_far)

    def piece(
        self,
        index: int,
        text: str,
        finish_reason: str | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
        so_far: dict[str, int] | None = None,
    ) -> dict[str, Any]:
        """One piece of a stream; the last one of a sequence has a finish reason.

        Args:
            index: of the sequence.
            text: that is new.
            finish_reason: of its last piece.
            logprobs: of its tokens, if they are told.
            so_far: `usage` of all sequences up to here, where each piece counts.
        """
        if self.kind == "chat":
            content: dict[str, Any] = {"delta": {"content": text} if text else {}}
        else:
            content = {"text": text}
        return self._piece(index, content, finish_reason, logprobs, so_far)

    def _piece(
        self,
        index: int,
        content: dict[str, Any],
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob] | None = None,
        so_far: dict[str, int] | None = None,
    ) -> dict[str, Any]:
        shown = None if logprobs is None else self._logprobs(logprobs)
        choice = {"index": index, **content, "logprobs": shown, "finish_reason": finish_reason}
        counted = {"usage": so_far} if self.counts_tokens else {}
        return {**self._outer(True), "choices": [choice], **counted}

    def counts(self, total: dict[str, int]) -> dict[str, Any]:
        """The last piece of a stream whose client asked for a count of tokens: `usage` of all."""
        return {**self._outer(True), "choices": [], "usage": total}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self.kind == "chat":
            return {"content": [_chat_logprob(token) for token in tokens]}
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": list(map(_by_text, tokens)) if any(x.top for x in tokens) else None,
            "text_offset": [token.offset for token in tokens],
        }


def _by_text(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens, and the one that is there: one more where it is none of them."""
    if not token.top or token.logprob is None:
        return None
    found: dict[str, float] = {}
    # Different tokens may have one text: the likeliest of them is told.
    for text, logprob in (*token.top, (token.token, token.logprob)):
        found.setdefault(text, logprob)
    return found


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [_chat_token(text, logprob) for text, logprob in token.top]
    return {**_chat_token(token.token, token.logprob), "top_logprobs": top}


def _chat_token(text: str, logprob: float | None) -> dict[str, Any]:
    # A token may be a part of a character, whose bytes its text does not tell.
    whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": logprob,
        "bytes": list(text.encode("utf-8")) if whole else None,
    }


def _usage_of(choices: Sequence[Choice]) -> dict[str, int]:
    prompt = sum(choice.prompt_tokens for choice in choices)
    return usage(prompt, sum(choice.completion_tokens for choice in choices))


def usage(prompt: int, written: int) -> dict[str, int]:
    """Tokens that were read and written."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def event(body: dict[str, Any]) -> str:
    """One server-sent event. Its JSON is ASCII, so that no piece can be cut inside a character."""
    return f"data: {json.dumps(body)}\n\n"


DONE = "data: [DONE]\n\n"
"""Ends every stream that was answered to the end."""
