"""A tiny model with a byte-level tokenizer, and a real server process that serves it."""

import http.client
import json
import os
import signal
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from families import model_from
from forked import fork_python
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

NAME = "tiny"
LENGTH = 96
FEW_FILES = 512
"""What the server may have open when it starts: less than it needs for its default limits."""
_PROGRAM = f"""
import resource, runpy, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW_FILES}, most))
sys.argv[0] = "secateur"
runpy.run_module("secateur", run_name="__main__")
"""
_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{{ note }}"
    "{% if wrong %}{{ raise_exception('not ' + wrong) }}{% endif %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that most characters outside ASCII take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    made.chat_template = _TEMPLATE
    return made


def write_model(folder: Path) -> None:
    """Two blocks, 259 tokens, random weights, with the tokenizer."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model_from(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


class Server:
    """`secateur serve` in a process of its own, on a port that was free, with few open files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = ("serve", str(folder), "--port", "0", "--served-name", NAME)
        self.program = fork_python("-c", _PROGRAM, *command, "--backend", "engine", *arguments)
        self.process = self.program.process
        deadline = time.monotonic() + 120
        # Up to the last line that is whole.
        while "listening on http://" not in (said := self._said().rpartition("\n")[0]):
            if self.process.exitcode is not None or time.monotonic() > deadline:
                raise AssertionError(self.program.wait(0).stderr)
            time.sleep(0.05)
        self.said = said.splitlines()
        self.address = self.said[-1].rpartition("/")[2]

    def _said(self) -> str:
        return self.program.stdout.read_text()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """One request; `body` is sent as JSON, bytes as they are."""
        connection = self.connect()
        try:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw, {"Content-Type": "application/json"})
            response = connection.getresponse()
            # Strict: not one byte may be broken.
            return response.status, response.read().decode("utf-8")
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        status, text = self.ask("POST", path, body)
        return status, json.loads(text)

    def metric(self, name: str) -> float:
        """One of `/metrics`; what was never counted is 0."""
        lines = self.ask("GET", "/metrics")[1].splitlines()
        return float(next((x.split()[-1] for x in lines if x.startswith(f"{name} ")), 0.0))

    def send_signal(self, number: signal.Signals) -> None:
        """Of a server that still runs."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self) -> "CompletedProcess[str]":
        """Wait for its end."""
        return self.program.wait(60)

    def stop(self) -> int:
        """Terminate, and wait for the exit code."""
        self.send_signal(signal.SIGTERM)
        return self.ended().returncode


def events(text: str) -> list[Any]:
    """What a stream said: the bodies of its events, and `[DONE]` as text."""
    assert text.endswith("\n\n")
    found = []
    for entry in text[:-2].split("\n\n"):
        assert entry.startswith("data: ")
        data = entry.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found
