"""Results as JSON lines, each with the machine and the versions that it was measured on."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from secateur.report.facts import machine_facts, package_versions

RESULTS = Path(__file__).parent / "results"


def append_record(name: str, values: dict[str, Any]) -> None:
    """Add one line to `bench/results/<name>.jsonl`."""
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": package_versions(),
        **values,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
