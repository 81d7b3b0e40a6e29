import json
from pathlib import Path

import pytest
import torch
from families import tiny_model
from torch import nn

from secateur.streaming.shards import _groups, write_index


@pytest.mark.parametrize(
    ("most_bytes", "groups"),
    [
        (1, [("a",), ("b",), ("c",)]),
        (15, [("a",), ("b",), ("c",)]),
        (16, [("a", "b"), ("c",)]),
        (24, [("a", "b", "c")]),
    ],
)
def test_groups_hold_at_most_so_many_bytes(most_bytes: int, groups: list[tuple[str, ...]]) -> None:
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in "abc"}
    assert list(_groups(parameters, most_bytes)) == groups


def test_the_index_is_that_of_transformers(tmp_path: Path) -> None:
    model = tiny_model("llama", 2)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    path = tmp_path / "model.safetensors.index.json"
    expected = json.loads(path.read_text())
    write_index(tmp_path, sorted(set(expected["weight_map"].values())))
    found = json.loads(path.read_text())
    assert found["weight_map"] == expected["weight_map"]
    assert found["metadata"]["total_size"] == expected["metadata"]["total_size"]
