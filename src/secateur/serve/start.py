"""From a model's folder to a service: verified, loaded, accelerated, warmed up."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.checkpoint.load import load_with_tokenizer, resolve_folder
from secateur.checkpoint.manifest import MANIFEST_FILE
from secateur.checkpoint.verify import verify_checkpoint
from secateur.engine import Engine, GenerationOptions
from secateur.engine.engine import PREFILL_CHUNK
from secateur.errors import SecateurError, VerificationError
from secateur.models.device import slow_products_note
from secateur.report.record import REPORT_FILE
from secateur.runtime.accelerate import accelerate
from secateur.serve.requests import SamplingDefaults
from secateur.serve.service import Service
from secateur.serve.vllm import NO_VLLM, has_vllm
from secateur.serve.worker import EngineWorker

Backend = Literal["vllm", "engine"]
BACKENDS = ("auto", "vllm", "engine")

_ROWS = 16
# Every way in which a request may have its tokens chosen.
_KINDS = tuple(
    GenerationOptions(
        temperature=temperature, top_p=top_p, logprobs=logprobs, presence_penalty=penalty
    )
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.5))
    for logprobs in (False, True)
    for penalty in (0.0, 1.0)
)

# What generation settings that do not sample leave to the API's defaults.
_SAMPLED = ("temperature", "top_p", "top_k", "min_p")

# Generation settings -> the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "typical_p": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "min_length": (None, 0),
    "max_new_tokens": (None,),
    "stop_strings": (None, []),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1),
    "penalty_alpha": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "num_beams": (None, 1),
}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What of a model is served, and how."""

    model: str
    served_name: str
    device: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    max_batch_size: int | None = None
    """None: 16 in the engine, and what vLLM thinks best there."""
    max_length: int | None = None
    prefill_chunk: int | None = None
    """None: what the engine or vLLM thinks best."""
    max_waiting: int = 1024
    api_key: str | None = None
    """What requests must show; None: nothing."""


def choose_backend(wanted: str) -> Backend:
    """`auto` is vLLM where it is installed, else the engine.

    Raises:
        SecateurError: there is no such backend, or it is not installed.
    """
    if wanted not in BACKENDS:
        raise SecateurError(f"expected --backend {', '.join(BACKENDS)}, got {wanted!r}")
    if wanted == "vllm" and not has_vllm():
        raise SecateurError(NO_VLLM)
    if wanted == "auto":
        return "vllm" if has_vllm() else "engine"
    return "vllm" if wanted == "vllm" else "engine"


def require_verified(folder: Path, trust_remote_code: bool = False) -> bool:
    """Refuse a checkpoint that is not what Secateur wrote.

    Returns:
        whether there was something to verify: other folders are served as they are.

    Raises:
        VerificationError: files, weights, pattern or logits are not those that were recorded.
        SecateurError: a folder that Secateur wrote has lost its report or manifest.
    """
    ours = (folder / MANIFEST_FILE).exists() or (folder / REPORT_FILE).exists()
    if not ours and not _is_compact(folder):
        return False
    failed = [check for check in verify_checkpoint(folder, trust_remote_code) if not check.passed]
    if failed:
        said = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise VerificationError(f"{folder} is not served, as it does not verify: {said}")
    return True


def _is_compact(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == "secateur"


def verified_folder(options: ServeOptions) -> tuple[Path, bool]:
    """The local folder of the model, and whether it was verified; see `require_verified`."""
    folder = resolve_folder(options.model, options.revision, options.trust_remote_code)
    return folder, require_verified(folder, options.trust_remote_code)


def make_service(options: ServeOptions, folder: Path) -> tuple[Service, list[str]]:
    """Load a model into an engine that is ready to serve.

    Args:
        options: as given to `secateur serve`.
        folder: of the model, verified.

    Returns:
        (the service, what to tell before it serves).

    Raises:
        SecateurError: it cannot be loaded or served.
    """
    loaded = load_with_tokenizer(
        folder, None, options.dtype, options.trust_remote_code, options.device
    )
    rows = options.max_batch_size or _ROWS
    accelerate(loaded.model, batch_sizes=_batch_sizes(rows))
    engine = Engine(
        loaded.model,
        loaded.tokenizer,
        max_batch_size=rows,
        max_length=options.max_length,
        prefill_chunk=options.prefill_chunk or PREFILL_CHUNK,
    )
    engine.warm_up(options=_KINDS)
    worker = EngineWorker(engine, options.max_waiting)
    defaults = sampling_defaults(loaded.model)
    service = Service(options.served_name, worker, loaded.tokenizer, defaults, options.api_key)
    return service, remarks(loaded.model)


def sampling_defaults(model: Any) -> SamplingDefaults:
    """How the model's generation settings want tokens chosen; the API's defaults for the rest.

    Raises:
        SecateurError: no tokens can be chosen like that.
    """
    settings = getattr(model, "generation_config", None)
    sampled = () if getattr(settings, "do_sample", None) is False else _SAMPLED
    given: dict[str, Any] = {
        name: getattr(settings, name, None) for name in ("repetition_penalty", *sampled)
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("top_k") == -1:
        # As in requests another word for no limit, which other servers take as well.
        given["top_k"] = 0
    try:
        GenerationOptions(**given)
    except SecateurError as error:
        raise SecateurError(f"the model's generation_config.json: {error}") from None
    return SamplingDefaults(**given)


def remarks(model: Any) -> list[str]:
    """What to tell before a model is served: what is not followed, and what will be slow."""
    settings = unheard(model)
    unfollowed = f"generation settings that are not followed: {', '.join(settings)}"
    slow = slow_products_note(model, model.device)
    return [*([unfollowed] if settings else []), *([slow] if slow else [])]


def unheard(model: Any) -> list[str]:
    """Generation settings of the model that would change answers and that are not followed."""
    settings = getattr(model, "generation_config", None)
    asked = {name: getattr(settings, name, None) for name in _NEUTRAL}
    return [f"{name} {value}" for name, value in asked.items() if value not in _NEUTRAL[name]]


def _batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, and the most."""
    powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return (*powers, most)
