"""`secateur serve`: an OpenAI-compatible server for a compressed model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import Device, Dtype, ModelArgument, Revision, TrustRemoteCode
from secateur.cli.waiting import waiting_for
from secateur.errors import SecateurError
from secateur.serve.server import reserve, run_server
from secateur.serve.start import (
    ServeOptions,
    choose_backend,
    make_service,
    verified_folder,
)
from secateur.serve.vllm import VllmOptions, run_vllm
from secateur.settings import read_settings, this_environment


def serve_command(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8000,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Sequences generated at the same time. Default: 16 in the engine; "
            "vLLM has its own."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of a prompt and its answer. Default: the model's context; in the "
            "engine at most 4096."
        ),
    ] = None,
    prefill_chunk: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompts computed at once, for which answers under way wait; in vLLM "
            "all tokens of a step. Default: 2048 in the engine; vLLM has its own."
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(help="Sequences that may wait for a place; more get status 429.")
    ] = 1024,
    backend: Annotated[
        str, typer.Option(help="vllm, engine, or auto: vLLM where it is installed.")
    ] = "auto",
    served_name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: MODEL.")
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(help="Seconds that requests under way get when the server is told to stop."),
    ] = 30.0,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Answer only requests that show this key. Default: SECATEUR_API_KEY, or all."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve MODEL under /v1/completions and /v1/chat/completions, after verifying it."""
    counts = {
        "--max-batch-size": max_batch_size,
        "--max-length": max_length,
        "--prefill-chunk": prefill_chunk,
        "--max-waiting": max_waiting,
    }
    _check(counts, drain_seconds, port)
    api_key = read_settings().api_key if api_key is None else api_key
    if api_key is not None and not (api_key and api_key.isascii()):
        raise SecateurError("expected --api-key of ASCII characters, at least one")
    options = ServeOptions(
        model=model,
        served_name=served_name or model,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        max_batch_size=max_batch_size,
        max_length=max_length,
        prefill_chunk=prefill_chunk,
        max_waiting=max_waiting,
        api_key=api_key,
    )
    if choose_backend(backend) == "vllm":
        run_vllm(_for_vllm(options, _verified(options), host, port))
        return
    with reserve(host, port) as place:
        folder = _verified(options)
        with waiting_for(f"load {model}"):
            service, remarks = make_service(options, folder)
        for remark in remarks:
            typer.echo(remark)
        run_server(service, place, drain_seconds, _ready)


def _verified(options: ServeOptions) -> Path:
    with waiting_for(f"verify {options.model}"):
        folder, verified = verified_folder(options)
    typer.echo("verified" if verified else "not verified: Secateur did not write this folder")
    return folder


def _ready(address: str) -> None:
    # Whoever starts the server in a pipe waits for this line.
    typer.echo(f"listening on {address}")


def _check(counts: Mapping[str, int | None], drain: float, port: int) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise SecateurError(f"expected {name} of at least 1, got {value}")
    if not 0 <= drain < 86400:
        raise SecateurError(f"expected --drain-seconds from 0 to a day, got {drain}")
    if not 0 <= port < 65536:
        raise SecateurError(f"expected --port from 0 to 65535, got {port}")


def _for_vllm(options: ServeOptions, folder: Path, host: str, port: int) -> VllmOptions:
    key = options.api_key
    return VllmOptions(
        model=str(folder),
        served_name=options.served_name,
        host=host,
        port=port,
        max_batch_size=options.max_batch_size,
        max_length=options.max_length,
        prefill_chunk=options.prefill_chunk,
        dtype=options.dtype,
        revision=None,
        trust_remote_code=options.trust_remote_code,
        # Not on the command line, which everybody on the machine can read.
        environment=None if key is None else this_environment(VLLM_API_KEY=key),
    )
