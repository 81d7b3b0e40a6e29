"""`secateur doctor`: what is installed here, and what that means for Secateur."""

import json
import shutil
from importlib.util import find_spec

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secateur.cli.options import JsonOutput
from secateur.errors import SecateurError
from secateur.models.device import has_slow_products
from secateur.report.facts import machine_facts, package_versions
from secateur.settings import read_settings
from secateur_kernels.dispatch.table import table_of_this_version, tables_in
from secateur_kernels.library import library_status
from secateur_kernels.settings import cache_folder

_OPTIONAL = {
    "datasets": "calibration from a dataset's name: pip install 'secateur[datasets]'",
    "lm_eval": "lm-eval tasks in `secateur evaluate`: pip install 'secateur[lm-eval]'",
}


def doctor_command(as_json: JsonOutput = False) -> None:
    """Say what this machine has and what is missing."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(dict(facts), indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts:
        table.add_row(name, escape(value))
    Console(emoji=False).print(table)


def _facts() -> list[tuple[str, str]]:
    settings = read_settings()
    return [
        *package_versions().items(),
        *machine_facts().items(),
        ("bfloat16 on the CPU", _on_cpu(torch.bfloat16)),
        ("float16 on the CPU", _on_cpu(torch.float16)),
        ("gpu", _gpu()),
        ("compiled library", _compiled_library()),
        ("measured times", _measured_times()),
        ("nvcc", shutil.which("nvcc") or "none (needed only to build kernels)"),
        *((name, _optional(name)) for name in _OPTIONAL),
        ("offline", "yes: the Hub is not asked" if settings.offline else "no"),
    ]


def _on_cpu(dtype: torch.dtype) -> str:
    if has_slow_products(dtype, torch.device("cpu")):
        return "many times slower than float32: use --dtype float32"
    return "supported"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none: compression runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def _compiled_library() -> str:
    """What the CUDA C++ kernels are built for, or why they do not run."""
    status = library_status()
    return f"for {', '.join(status.architectures)}" if status.loaded else status.reason


def _measured_times() -> str:
    """What `secateur tune` left on this machine, for each kind of device."""
    found = []
    try:
        paths = tables_in(cache_folder())
    except SecateurError as error:
        return f"passed over: {error}"
    for path in paths:
        table, why_not = table_of_this_version(path)
        held = f"{len(table.entries)} entries for {table.device} in {path}" if table else ""
        found.append(held or f"passed over: {why_not}")
    return "; ".join(found) or "none on this machine (secateur tune makes them)"


def _optional(name: str) -> str:
    return "installed" if find_spec(name) else f"not installed ({_OPTIONAL[name]})"
