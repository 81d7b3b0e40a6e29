"""`secateur inspect`: what a model consists of, and what Secateur would work on."""

import json
import re
from collections import Counter
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from secateur.checkpoint.load import load_model
from secateur.cli.options import Dtype, JsonOutput, ModelArgument, Revision, TrustRemoteCode
from secateur.cli.waiting import waiting_for
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.measure import num_bytes
from secateur.models.sites import WeightSite
from secateur.models.sublayers import removed_sublayers
from secateur.models.swap import compressed_modules
from secateur.report.numbers import format_bytes
from secateur.run_report import size_record


def inspect_command(
    model: ModelArgument,
    revision: Revision = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: JsonOutput = False,
) -> None:
    """Show a model's blocks, its weight matrices, and what is not touched."""
    with waiting_for(f"load {model}"):
        loaded = load_model(
            model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
        )
    inventory = take_inventory(loaded.model)
    facts = _facts(loaded.model, inventory)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = Console(emoji=False)
    console.print(
        f"{facts['architecture']}: {facts['num_parameters']:,} parameters, "
        f"{format_bytes(facts['num_bytes'])}, {facts['num_blocks']} blocks at "
        f"{inventory.blocks.name}"
    )
    if inventory.all_sites:
        console.print(_sites_table(inventory))
    if facts["compressed"]:
        console.print(_compressed_table(facts["compressed"]))
    if facts["removed"]:
        console.print(f"Removed from their blocks: {', '.join(facts['removed'])}", highlight=False)
    console.print(_unmatched_table(inventory))


def _facts(model: Any, inventory: Inventory) -> dict[str, Any]:
    return {
        "architecture": type(model).__name__,
        "num_parameters": size_record(model).num_parameters,
        "num_bytes": num_bytes(model),
        "num_blocks": len(inventory.blocks),
        "blocks": inventory.blocks.name,
        "matrices": [
            {"name": site.name, "shape": list(site.shape), "class": site.class_name}
            for site in inventory.all_sites
        ],
        "compressed": [
            {"name": name, "shape": [module.out_features, module.in_features], "layer": str(module)}
            for name, module in compressed_modules(model).items()
        ],
        "removed": list(removed_sublayers(model)),
        "untouched": [
            {"name": entry.name, "shape": list(entry.shape), "reason": entry.reason}
            for entry in inventory.unmatched
        ],
    }


def _sites_table(inventory: Inventory) -> Table:
    table = Table(title="Weight matrices [N, K], by kind", title_justify="left")
    for heading in ("name in a block", "class", "shape"):
        table.add_column(heading)
    table.add_column("blocks", justify="right")
    table.add_column("number", justify="right")
    kinds: dict[tuple[str, str, tuple[int, int]], set[int]] = {}
    counts: dict[tuple[str, str, tuple[int, int]], int] = {}
    for index, sites in enumerate(inventory.sites):
        for site in sites:
            kind = (_kind(site, inventory.blocks.block_name(index)), site.class_name, site.shape)
            kinds.setdefault(kind, set()).add(index)
            counts[kind] = counts.get(kind, 0) + 1
    for kind, blocks in kinds.items():
        name, class_name, shape = kind
        table.add_row(
            name, class_name, f"{shape[0]} x {shape[1]}", str(len(blocks)), str(counts[kind])
        )
    return table


def _compressed_table(layers: list[dict[str, Any]]) -> Table:
    table = Table(title="Compressed layers, by kind", title_justify="left")
    table.add_column("name", overflow="fold")
    table.add_column("layer")
    table.add_column("number", justify="right")
    kinds = Counter((re.sub(r"\.\d+\.", ".*.", layer["name"]), layer["layer"]) for layer in layers)
    for (name, layer), number in kinds.items():
        table.add_row(name, layer, str(number))
    return table


def _kind(site: WeightSite, block_name: str) -> str:
    name = site.name.removeprefix(f"{block_name}.")
    return name if site.expert is None else name.replace(f".{site.expert}.", ".*.")


def _unmatched_table(inventory: Inventory) -> Table:
    table = Table(title="Not touched", title_justify="left")
    table.add_column("why")
    table.add_column("tensors", justify="right")
    table.add_column("such as", overflow="fold")
    reasons: dict[str, list[str]] = {}
    for entry in inventory.unmatched:
        reasons.setdefault(entry.reason, []).append(entry.name)
    for reason, names in reasons.items():
        table.add_row(reason, str(len(names)), names[0])
    return table
