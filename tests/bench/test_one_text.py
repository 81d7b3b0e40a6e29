"""What both benchmarks of quality compress, measure and record."""

import json
from typing import Any

import pytest
from bench import low_rank, quality
from bench.records import RESULTS

SMALL: dict[str, Any] = {"windows": 2, "num_samples": 1, "length": 32, "untimed": True}


def test_both_benchmarks_record_what_they_always_did(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[dict[str, Any]]] = {"quality": [], "low_rank_quality": []}
    for module in (quality, low_rank):
        monkeypatch.setattr(module, "append_record", lambda name, new: written[name].append(new))
    monkeypatch.setattr(low_rank, "BUDGETS", (0.1,))
    quality.main(methods="magnitude", **SMALL)
    low_rank.quality(methods="svd", **SMALL)
    not_theirs = {"created", "machine", "versions", "seconds"}
    for name, records in written.items():
        before = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        assert [record.keys() for record in records] == 2 * [json.loads(before).keys() - not_theirs]
    of_dense = [records[0] for records in written.values()]
    shared = of_dense[0].keys() & of_dense[1].keys()
    assert {"perplexity", "standard_error", "num_tokens", "text"} < shared
    assert all(of_dense[0][key] == of_dense[1][key] for key in shared)
