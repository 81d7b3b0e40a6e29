"""Where models are."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import tiny_model
from streaming_jobs import recipe_of, samples, save
from told import Told
from torch import Tensor

from secateur import SecateurError, compress, compress_with_report
from secateur.compress_streaming import compress_streaming
from secateur.models.device import has_slow_products, slow_products_note


def test_a_model_on_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    recipe = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}

    def spread(*_: Any, **__: Any) -> Iterator[Any]:
        for device in ("meta", "cuda:0", "cuda:1", "cuda:1"):
            yield SimpleNamespace(device=torch.device(device), is_meta=device == "meta")

    monkeypatch.setattr(type(model), "parameters", spread)
    with pytest.raises(SecateurError, match="on one device, got its weights on cuda:0, cuda:1:"):
        compress(model, recipe)


def cpu_with(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """As if the CPU had instructions for these of bf16 and fp16."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for kind in ("bf16", "fp16"):
        answer = kind in kinds
        name = f"_is_mkldnn_{kind}_supported"
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda answer=answer: answer, raising=False)


def test_products_of_16_bits_are_slow_on_a_cpu_without_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    cpu_with(monkeypatch, "bf16")
    assert has_slow_products(torch.float16, cpu)
    assert not has_slow_products(torch.bfloat16, cpu)
    cpu_with(monkeypatch)
    assert has_slow_products(torch.bfloat16, cpu)
    assert not has_slow_products(torch.bfloat16, torch.device("cuda"))
    assert not has_slow_products(torch.float32, cpu)
    model = tiny_model("llama").bfloat16()
    note = "this CPU is slow in bfloat16: --dtype float32, twice as large"
    assert slow_products_note(model, cpu) == note
    assert slow_products_note(model.float(), cpu) == ""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_torch_still_says_what_the_cpu_supports(kind: str) -> None:
    assert getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported")() in (True, False)


@pytest.mark.parametrize("kinds", [(), ("bf16", "fp16")], ids=["slow", "fast"])
@pytest.mark.parametrize("calibration", [None, samples()], ids=["by weights", "calibrated"])
@pytest.mark.parametrize("streams", [False, True], ids=["in memory", "streamed"])
def test_compression_tells_of_slow_products_before_it_calibrates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[str, ...],
    calibration: Tensor | None,
    streams: bool,
) -> None:
    cpu_with(monkeypatch, *kinds)
    folder = save(tiny_model("llama").bfloat16(), tmp_path / "in")
    recipe = recipe_of(method="magnitude" if calibration is None else "wanda")
    told = Told()
    run = compress_streaming if streams else compress_with_report
    run(folder, recipe, calibration=calibration, output=tmp_path / "out", progress=told)
    names = [task for task, _, _ in told.tasks]
    before = names[: next(i for i, name in enumerate(names) if name.startswith("prune"))]
    notes = [detail for _, _, details in told.tasks[: len(before)] for detail in details if detail]
    is_told = calibration is not None and not kinds
    assert notes == ["this CPU is slow in bfloat16: --dtype float32, twice as large"] * is_told
    assert not told.unfinished()
