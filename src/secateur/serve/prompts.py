"""Prompts as token ids, in a thread of their own, so that long ones hold up nobody's stream."""

import asyncio
import copy
import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from secateur.serve.faults import RequestFault, too_long
from secateur.serve.fields import encodable
from secateur.serve.requests import Prompt


class PromptEncoder:
    """Encodes with its own copy of a tokenizer.

    Fast tokenizers may not be used by two threads at once; the engine decodes with the original.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        """Copy a tokenizer, with its chat template if it has one.

        Args:
            max_length: most tokens that anybody wants of a text. One that surely has more is not
                encoded, which may take seconds.
        """
        self._tokenizer = copy.deepcopy(tokenizer)
        self._max_length = max_length
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="secateur-prompts")

    def close(self) -> None:
        """End the thread; nothing can be encoded afterwards."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def text(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, special tokens added; given ones as they are.

        Raises:
            RequestFault: there is none, or there are too many.
        """
        if isinstance(prompt, tuple):
            return list(prompt)
        token_ids = await self._in_thread(self._encode, prompt, "prompt", True)
        if not token_ids:
            raise RequestFault("expected a prompt with at least one token", param="prompt")
        return token_ids

    async def chat(
        self, messages: tuple[dict[str, str], ...], template_arguments: Mapping[str, Any]
    ) -> list[int]:
        """Token ids of a conversation up to where the answer begins.

        Args:
            messages: each with a role and a text.
            template_arguments: what the template is given beside them, `enable_thinking` say.

        Raises:
            RequestFault: the model has no chat template, the template refuses the messages, an
                argument is not the template's, or there are too many tokens.
        """
        return await self._in_thread(self._encode_chat, messages, template_arguments)

    async def _in_thread(self, function: Any, *arguments: Any) -> list[int]:
        loop = asyncio.get_running_loop()
        token_ids: list[int] = await loop.run_in_executor(self._executor, function, *arguments)
        return token_ids

    def _encode(self, text: str, param: str, special: bool) -> list[int]:
        if len(text) > self._max_length * self._longest_token:
            raise too_long(self._max_length, f"a text of {len(text)} characters has more", param)
        return list(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def _encode_chat(
        self, messages: tuple[dict[str, str], ...], template_arguments: Mapping[str, Any]
    ) -> list[int]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise RequestFault(
                "this model has no chat template: use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        # These are no variables of the template, but say how it is rendered, or replace it.
        own = {
            "self",
            "messages",
            "conversations",
            *inspect.signature(self._tokenizer.apply_chat_template).parameters,
        }
        if taken := sorted(own & template_arguments.keys()):
            raise RequestFault(
                f"chat_template_kwargs: expected variables of the chat template, got {taken[0]}",
                param="chat_template_kwargs",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **template_arguments
            )
        except Exception as error:  # templates are programs that come with the model
            raise RequestFault(
                f"the chat template refuses these messages: {error}", param="messages"
            ) from None
        # A template writes the special tokens itself.
        return self._encode(encodable(text, "messages"), "messages", False)
