"""Bodies of requests, checked: what OpenAI's API calls completions and chat completions.

Fields that would change the answer and are not supported are refused, not ignored: those of OpenAI
and of vLLM by name. Others that are unknown (`user`, `metadata`) are ignored, as clients of newer
versions send them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.engine.options import MOST_PENALTY, MOST_TOP_LOGPROBS
from secateur.serve.faults import RequestFault
from secateur.serve.fields import above_zero, encodable, flag, number, shown, whole, wrong

Prompt = str | tuple[int, ...]

MOST_STOPS = 16
MOST_ANSWERS = 64
_LARGEST_SEED = 2**63 - 1
_MOST_REPETITION = 100.0

# Field -> the values that ask for nothing beyond what this server does. The lower ones are not
# OpenAI's, but other servers take them.
_FIXED: dict[str, tuple[object, ...]] = {
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "reasoning_effort": (None, "none"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "typical_p": (None, 1),
    "length_penalty": (None, 1),
    "use_beam_search": (None, False),
    "include_stop_str_in_output": (None, False),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "prompt_logprobs": (None,),
    "prompt_embeds": (None,),
    "logits_processors": (None, []),
    "thinking_token_budget": (None,),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
}
_FIXED_IN_COMPLETIONS: dict[str, tuple[object, ...]] = {"add_special_tokens": (None, True)}
_FIXED_IN_CHATS: dict[str, tuple[object, ...]] = {
    "echo": (None, False),
    "add_special_tokens": (None, False),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "chat_template": (None,),
    "documents": (None, []),
}


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How tokens are chosen where a request does not say; the API's own, or the model's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0


_API_DEFAULTS = SamplingDefaults()
_USUAL_COMPLETION = 16


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What both kinds of requests ask for."""

    model: str
    max_tokens: int | None
    """None: as many as the model has room for, or `usual_tokens` where that is less."""
    usual_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    """0: no limit."""
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    n: int
    """Answers to each prompt."""
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    """Whether answers go on behind the tokens that end a text: load generators want it."""
    seed: int | None
    """None: every answer draws its own."""
    stream: bool
    include_usage: bool
    """Whether a stream ends with a count of tokens."""
    continuous_usage: bool
    """Whether each of its pieces has the count so far."""
    logprobs: bool
    """Whether the log-probability of each token is wanted."""
    top_logprobs: int
    """Of how many of the likeliest tokens they are wanted as well."""
    echo: bool = False
    """Whether an answer begins with its prompt."""


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(GenerationRequest):
    """A request to continue text, or several texts."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, kw_only=True)
class ChatRequest(GenerationRequest):
    """A request for the next message of a conversation."""

    messages: tuple[dict[str, str], ...]
    """Each with a role and a text."""
    template_arguments: Mapping[str, Any]
    """What the chat template is given beside them."""


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestFault: it is not one.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestFault(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestFault(f"expected a JSON object, got {_kind(body)}", code="invalid_json")
    return body


def completion_request(
    body: Mapping[str, Any], defaults: SamplingDefaults = _API_DEFAULTS
) -> CompletionRequest:
    """Check the body of `/v1/completions`.

    Args:
        body: as it came.
        defaults: for what it does not say.

    Raises:
        RequestFault: a field is missing, wrong, or asks for what is not supported.
    """
    _require_supported(body, _FIXED | _FIXED_IN_COMPLETIONS)
    # None at all are of use with the prompt's own log-probabilities.
    shared = _shared(body, ("max_tokens", "max_completion_tokens"), 0, defaults)
    shared["usual_tokens"] = _USUAL_COMPLETION
    top = whole(body, "logprobs", 0, MOST_TOP_LOGPROBS)
    request = CompletionRequest(
        **shared,
        logprobs=top is not None,
        top_logprobs=top or 0,
        echo=flag(body, "echo"),
        prompts=_prompts(body),
    )
    if len(request.prompts) * request.n > MOST_ANSWERS:
        raise RequestFault(
            f"expected at most {MOST_ANSWERS} answers, got {len(request.prompts)} prompts with "
            f"{request.n} each",
            param="n",
        )
    # The best of as many as are wanted are all of them.
    if whole(body, "best_of", 1, MOST_ANSWERS) not in (None, request.n):
        raise RequestFault(
            f"best_of: expected n, {request.n}, as none are left out, got {body['best_of']}",
            param="best_of",
        )
    return request


def chat_request(
    body: Mapping[str, Any], defaults: SamplingDefaults = _API_DEFAULTS
) -> ChatRequest:
    """Check the body of `/v1/chat/completions`.

    Args:
        body: as it came.
        defaults: for what it does not say.

    Raises:
        RequestFault: as `completion_request`.
    """
    _require_supported(body, _FIXED | _FIXED_IN_CHATS)
    shared = _shared(body, ("max_completion_tokens", "max_tokens"), 1, defaults)
    wanted = flag(body, "logprobs")
    top = whole(body, "top_logprobs", 0, MOST_TOP_LOGPROBS) or 0
    if top and not wanted:
        raise RequestFault(
            f"top_logprobs: expected logprobs: true with it, got {top} alone", param="top_logprobs"
        )
    return ChatRequest(
        **shared,
        logprobs=wanted,
        top_logprobs=top,
        messages=tuple(_messages(body)),
        template_arguments=_template_arguments(body),
    )


def _require_supported(body: Mapping[str, Any], fixed: Mapping[str, tuple[object, ...]]) -> None:
    for name, allowed in fixed.items():
        value = body.get(name)
        takes_flags = any(isinstance(one, bool) for one in allowed)
        if value is not None and isinstance(value, bool) != takes_flags:
            raise wrong(name, "a supported value", value)
        if value not in allowed:
            raise RequestFault(f"{name} is not supported, got {shown(value)}", param=name)


def _shared(
    body: Mapping[str, Any], limits: tuple[str, ...], fewest: int, defaults: SamplingDefaults
) -> dict[str, Any]:
    asked = [whole(body, name, fewest, 2**31) for name in limits]
    most = next((value for value in asked if value is not None), None)
    seed = whole(body, "seed", -_LARGEST_SEED, _LARGEST_SEED)
    top_k = whole(body, "top_k", -1, 2**31)
    return {
        "model": _model(body),
        "max_tokens": most,
        "usual_tokens": None,
        "temperature": number(body, "temperature", defaults.temperature, 0.0, 2.0),
        "top_p": above_zero(body, "top_p", defaults.top_p, 1.0),
        # -1 is another word for no limit.
        "top_k": defaults.top_k if top_k is None else max(0, top_k),
        "min_p": number(body, "min_p", defaults.min_p, 0.0, 1.0),
        "repetition_penalty": above_zero(
            body, "repetition_penalty", defaults.repetition_penalty, _MOST_REPETITION
        ),
        "presence_penalty": number(body, "presence_penalty", 0.0, -MOST_PENALTY, MOST_PENALTY),
        "frequency_penalty": number(body, "frequency_penalty", 0.0, -MOST_PENALTY, MOST_PENALTY),
        "n": whole(body, "n", 1, MOST_ANSWERS) or 1,
        "stop": _stops(body),
        "seed": None if seed is None else seed & _LARGEST_SEED,
        "stop_token_ids": _stop_token_ids(body),
        "ignore_eos": _ignore_eos(body, most),
        "stream": flag(body, "stream"),
        **_usage_wanted(body),
    }


def _model(body: Mapping[str, Any]) -> str:
    value = body.get("model")
    if not isinstance(value, str) or not value:
        raise wrong("model", "the name of a model", value)
    return value


def _usage_wanted(body: Mapping[str, Any]) -> dict[str, bool]:
    options = body.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise wrong("stream_options", "an object", options)
    wanted = flag(options, "include_usage")
    # A field of vLLM's, which counts there only with the other one.
    each = flag(options, "continuous_usage_stats")
    return {"include_usage": wanted, "continuous_usage": wanted and each}


def _ignore_eos(body: Mapping[str, Any], most: int | None) -> bool:
    ignores = flag(body, "ignore_eos")
    if fewest := whole(body, "min_tokens", 0, 2**31):
        _check_fewest(body, fewest, most, ignores)
    return ignores


def _check_fewest(body: Mapping[str, Any], fewest: int, most: int | None, ignores: bool) -> None:
    """Whoever ignores ends, and names none, gets all the tokens there may be."""
    if not ignores or body.get("stop") or body.get("stop_token_ids"):
        raise RequestFault(
            "min_tokens is supported only with ignore_eos: true and without stop and "
            "stop_token_ids",
            param="min_tokens",
        )
    if fewest > (most or 0):
        raise RequestFault(
            f"min_tokens: expected max_tokens of as many with it, {fewest}, got {most}",
            param="min_tokens",
        )


def _stop_token_ids(body: Mapping[str, Any]) -> tuple[int, ...]:
    value = body.get("stop_token_ids")
    if value is None or value == []:
        return ()
    if not _are_tokens(value) or min(value) < 0:
        raise wrong("stop_token_ids", "a list of token ids", value)
    if len(value) > MOST_STOPS:
        raise RequestFault(
            f"expected at most {MOST_STOPS} stop_token_ids, got {len(value)}",
            param="stop_token_ids",
        )
    return tuple(value)


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop")
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise wrong("stop", "a text or a list of texts, none empty", value)
    if len(stops) > MOST_STOPS:
        raise RequestFault(f"expected at most {MOST_STOPS} stops, got {len(stops)}", param="stop")
    return tuple(encodable(stop, "stop") for stop in stops)


def _prompts(body: Mapping[str, Any]) -> tuple[Prompt, ...]:
    value: Any = body.get("prompt")
    if isinstance(value, str) or _are_tokens(value):
        return (_prompt(value),)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(p, str) or _are_tokens(p) for p in value)
    ):
        if len(value) > MOST_ANSWERS:
            raise RequestFault(
                f"expected at most {MOST_ANSWERS} prompts, got {len(value)}", param="prompt"
            )
        return tuple(_prompt(item) for item in value)
    raise wrong("prompt", "a text, a list of token ids, or a list of either", value)


def _prompt(value: str | list[int]) -> Prompt:
    if isinstance(value, str):
        return encodable(value, "prompt")
    return tuple(value)


def _are_tokens(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise wrong("messages", "a list of messages", value)
    return [_message(item, f"messages.{place}") for place, item in enumerate(value)]


def _template_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    value = body.get("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong("chat_template_kwargs", "an object", value)
    return value


def _message(value: object, param: str) -> dict[str, str]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise wrong(param, "an object with a role and content", value)
    if value.get("tool_calls"):
        raise RequestFault(f"{param}.tool_calls is not supported", param=f"{param}.tool_calls")
    content = value.get("content")
    if content is None and value["role"] == "assistant":
        # Clients send back an answer that held nothing.
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{param}.content") for part in content)
    if not isinstance(content, str):
        raise wrong(f"{param}.content", "a text, or parts of type text", content)
    role = encodable(value["role"], f"{param}.role")
    return {"role": role, "content": encodable(content, f"{param}.content")}


def _part(value: object, param: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        text = value.get("text")
        if isinstance(text, str):
            return text
    raise wrong(param, "parts of type text", value)


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number or flag")
