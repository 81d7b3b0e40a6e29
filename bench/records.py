"""Results as JSON lines, each with the machine and the versions that it was measured on."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from secateur.report.facts import machine_facts, package_versions

RESULTS = Path(__file__).parent / "results"


def append_record(name: str, values: dict[str, Any], folder: Path = RESULTS) -> None:
    """Add one line to `<name>.jsonl` in `bench/results` or another folder."""
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": package_versions(),
        **values,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
