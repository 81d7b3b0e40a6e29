"""2:4 layers and factors, written as such while a model is streamed."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MOST_DIFFERENT, TURNED_EXPERTS, tiny_model
from streaming_jobs import factors, recipe_of, samples, save, stream
from streaming_same import require_same
from thoroughness import most_telling

from secateur.compress import compress

FACTORED: dict[str, dict[str, Any]] = {
    "rank": {"method": "svd-whitened", "rank": 16},
    "rank, not in turn": {"method": "svd-whitened", "rank": 16, "in_turn": False},
    "budget": {"method": "svd-whitened", "budget": 0.1, "importance": "output"},
    "by weights": {"method": "svd", "budget": 0.1},
    "with a sketch": {"method": "svd", "rank": 16, "exact": False},
    "multiplied back": {"method": "svd-whitened", "rank": 16, "write": "dense"},
    "laser": {
        "method": "laser",
        "interventions": [{"matrix": "mlp_in", "block": 1, "fraction": 0.2}],
    },
    "some": {"method": "svd-whitened", "rank": 16, "targets": ["re:.*(up|down)_proj"]},
}
NEEDS_NO_TOKENS = ("by weights", "with a sketch", "laser")


@pytest.mark.parametrize("name", [*most_telling(list(FAMILIES), MOST_DIFFERENT), *TURNED_EXPERTS])
def test_every_family_as_24(tmp_path: Path, name: str) -> None:
    folder = save(tiny_model(name, 3).bfloat16(), tmp_path / "in", "20KB")
    recipe = recipe_of(method="wanda")
    require_same(folder, recipe, tmp_path, samples(), checkpoint_format="compact")


@pytest.mark.parametrize("name", FACTORED)
def test_every_kind_of_factors(tmp_path: Path, name: str) -> None:
    folder = save(tiny_model("llama", 3), tmp_path / "in")
    tokens = None if name in NEEDS_NO_TOKENS else samples()
    require_same(folder, factors(**FACTORED[name]), tmp_path, tokens, checkpoint_format="auto")


def bytes_of_parameters() -> int:
    gc.collect()
    found = [item for item in gc.get_objects() if type(item) is torch.nn.Parameter]
    return sum(parameter.nbytes for parameter in found if not parameter.is_meta)


HELD = {
    "2:4": recipe_of(method="wanda"),
    "factors": factors(method="svd-whitened", rank=16),
    "both": factors(method="sparse-plus-low-rank", rank=16, rounds=2),
}


@pytest.mark.parametrize("name", HELD)
def test_no_weight_is_kept_behind_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Layers that compressed ones took the place of are still known by name."""
    folder = save(tiny_model("llama", 3).bfloat16(), tmp_path / "in")
    held: list[int] = []
    monkeypatch.setattr(
        "secateur.streaming.walk.return_free_memory", lambda: held.append(bytes_of_parameters())
    )
    before = bytes_of_parameters()
    stream(folder, tmp_path / "out", recipe=HELD[name], checkpoint_format="compact")
    assert held == [before] * 3


@pytest.mark.parametrize("is_24", [False, True], ids=["dense", "2:4 in part"])
def test_no_matrix_gets_factors(tmp_path: Path, is_24: bool) -> None:
    folder = save(tiny_model("llama", 3), tmp_path / "dense")
    if is_24:
        recipe = recipe_of(method="magnitude", targets=["re:.*up_proj"])
        compress(folder, recipe, output=tmp_path / "in")
        folder = tmp_path / "in"
    override = {"targets": ["re:.*"], "rank": None}
    recipe = factors(method="svd-whitened", rank=16, overrides=[override])
    require_same(folder, recipe, tmp_path, samples(), checkpoint_format="auto")
    assert "import secateur" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", most_telling(list(FAMILIES), ["llama", "phi3", "gpt2", "opt", "mixtral"])
)
def test_every_family_as_factors(tmp_path: Path, name: str) -> None:
    folder = save(tiny_model(name, 3), tmp_path / "in", "20KB")
    # Fused experts cannot become layers.
    recipe = factors(method="svd-whitened", rank=16, targets=["re:.*(attn|attention).*"])
    require_same(folder, recipe, tmp_path, samples(), checkpoint_format="auto")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_sparse_plus_low_rank(tmp_path: Path, name: str) -> None:
    folder = save(tiny_model(name, 3).bfloat16(), tmp_path / "in")
    ignore = ["re:.*experts.*"] if name == "mixtral" else []
    recipe = factors(method="sparse-plus-low-rank", rank=16, rounds=2, ignore=ignore)
    require_same(folder, recipe, tmp_path, samples(), checkpoint_format="auto")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_24_in_another_dtype(tmp_path: Path, dtype: str) -> None:
    folder = save(tiny_model("llama").bfloat16(), tmp_path / "in")
    recipe = recipe_of(method="sparsegpt", ignore=["re:.*q_proj"])
    require_same(folder, recipe, tmp_path, samples(), dtype, checkpoint_format="compact")
