"""One compression in memory and streamed, and the demand that both are the same."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from secateur.checkpoint.form import CheckpointFormat
from secateur.checkpoint.verify import verify_checkpoint
from secateur.compress import compress_with_report
from secateur.compress_streaming import compress_streaming
from secateur.plain import to_plain
from secateur.progress import SilentProgress
from secateur.report.record import load_report


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith("seconds")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def require_same(
    folder: Path,
    recipe: dict[str, Any],
    tmp_path: Path,
    calibration: torch.Tensor | None = None,
    dtype: str = "auto",
    checkpoint_format: CheckpointFormat = "dense",
    **options: Any,
) -> None:
    """Compress both ways; the folder, the report and what transformers makes of it are equal."""
    model, expected = compress_with_report(
        folder,
        recipe,
        calibration=calibration,
        output=tmp_path / "whole",
        dtype=dtype,
        checkpoint_format=checkpoint_format,
        progress=SilentProgress(),
    )
    report = compress_streaming(
        folder,
        recipe,
        calibration=calibration,
        output=tmp_path / "out",
        dtype=dtype,
        checkpoint_format=checkpoint_format,
        progress=SilentProgress(),
        **options,
    )
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    weights, streamed = model.state_dict(), loaded.state_dict()
    assert weights.keys() == streamed.keys()
    for name, value in weights.items():
        assert value.dtype == streamed[name].dtype, name
        assert torch.equal(value, streamed[name]), name
    assert len(list(model.parameters())) == len(list(loaded.parameters()))
    assert load_report(tmp_path / "out") == report
    assert report.verification == expected.verification
    assert report.size == expected.size
    assert report.model == expected.model
    assert report.calibration == expected.calibration
    assert timeless(to_plain(report.stages)) == timeless(to_plain(expected.stages))
    assert [check.detail for check in verify_checkpoint(tmp_path / "out") if not check.passed] == []
    assert not list(tmp_path.glob(".*")), "the job's folder is left"
    for name in ("README.md", "config.json"):
        written = [(tmp_path / way / name).read_text(encoding="utf-8") for way in ("whole", "out")]
        assert written[0] == written[1], name
    others = {path.name for path in (tmp_path / "whole").iterdir() if path.suffix != ".safetensors"}
    ours = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"}
    assert ours == others | {"model.safetensors.index.json"}
