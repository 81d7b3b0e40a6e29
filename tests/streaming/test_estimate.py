"""Needs that are reckoned beforehand, against a recount."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, model_from, tiny_model
from safetensors.torch import load_file
from streaming_jobs import factors, recipe_of, samples, save, stream
from transformers import HunYuanMoEV1Config, MambaConfig

from secateur.errors import OutOfSpaceError, SecateurError
from secateur.models.host_memory import available_host_bytes
from secateur.prepare import CalibrationChoice
from secateur.prepare_streaming import estimate_streaming, prepare_streaming
from secateur.streaming.activations import (
    buffer_maker,
    buffers_on_host,
    bytes_on_host,
    choose_home,
)
from secateur.streaming.estimate import Estimate, _bytes_of_copy, check_room

CPU = torch.device("cpu")


def estimate(folder: Path, output: Path, tokens: Any, **options: Any) -> Estimate:
    recipe = recipe_of(**options.pop("stage", {"method": "wanda"}))
    choice = CalibrationChoice(tokens, 128, None, 0)
    return estimate_streaming(prepare_streaming(folder, recipe, choice, output=output, **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama", 3), tmp_path_factory.mktemp("model") / "in")


def test_sizes_are_those_of_the_files(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    block = sum(t.nbytes for name, t in tensors.items() if ".layers.1." in name)
    found = estimate(folder, tmp_path / "out", samples(5, 13), activations="host")
    assert found.model_bytes == sum(t.nbytes for t in tensors.values())
    assert found.largest_block_bytes == block
    # Both buffers of [5 x 13, 32] in fp32.
    assert found.activation_bytes == 2 * 5 * 13 * 32 * 4
    assert (found.activations, found.device_bytes) == ("host", 0)
    assert found.disk_bytes == found.model_bytes
    assert found.host_bytes > 2 * block + found.activation_bytes
    assert 0 < found.seconds < math.inf
    in_file = estimate(folder, tmp_path / "out", samples(5, 13), activations="file")
    assert in_file.disk_bytes == found.model_bytes + found.activation_bytes
    half = estimate(folder, tmp_path / "out", samples(5, 13), dtype="bfloat16")
    assert 2 * half.model_bytes == found.model_bytes
    assert 2 * half.activation_bytes == found.activation_bytes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("in_fp32", "size"), [(True, 4), (False, 2)])
def test_hidden_states_in_fp32_beside_16_bit_weights(
    in_fp32: bool, size: int, tmp_path: Path
) -> None:
    config = MambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        time_step_rank=4,
        residual_in_fp32=in_fp32,
    )
    folder = save(model_from(config).bfloat16(), tmp_path / "in")
    found = estimate(folder, tmp_path / "out", samples(5, 13))
    assert found.activation_bytes == 2 * 5 * 13 * 32 * size


def test_factors_take_disk(folder: Path, tmp_path: Path) -> None:
    recipe, choice = factors(rank=16, method="svd"), CalibrationChoice(None, 128, None, 0)
    found = estimate_streaming(prepare_streaming(folder, recipe, choice, output=tmp_path / "o"))
    # Rank 16 pays for all but k and v [16, 32], which have 512 values and not 16 x 48.
    assert found.disk_bytes == found.model_bytes + 3 * 2 * (16 * 48 - 512) * 4
    assert 0 < found.seconds < math.inf


def test_tuning_halves_takes_hidden_states_between_them(folder: Path, tmp_path: Path) -> None:
    def host(**stage: Any) -> int:
        return estimate(folder, tmp_path / "out", samples(), stage=stage).host_bytes

    halves = {"method": "wanda++", "reconstruct": {"granularity": "halves"}}
    # Of [5 x 13, 32] in fp32, two buffers.
    assert host(**halves) - host(method="wanda++") == 2 * 5 * 13 * 32 * 4


def test_writing_24_layers_takes_memory(folder: Path, tmp_path: Path) -> None:
    dense, compact = (
        estimate(folder, tmp_path / "out", samples(), checkpoint_format=name)
        for name in ("dense", "compact")
    )
    more = 24 * 32 * 64 + dense.largest_block_bytes * 9 // 16
    assert compact.host_bytes - dense.host_bytes == more
    assert compact.disk_bytes == dense.disk_bytes


def test_routing_that_differs_from_block_to_block(tmp_path: Path) -> None:
    """Hunyuan says for each block to how many experts a token is sent."""
    config = HunYuanMoEV1Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        moe_topk=[2, 2],
        pad_token_id=0,
    )
    folder = save(model_from(config), tmp_path / "in")
    found = estimate(folder, tmp_path / "out", samples())
    # At most all four experts of a block, each 2 x 64 wide, in fp32, beside the masks.
    assert found.host_bytes > 1.1 * 5 * 13 * 4 * (4 * 128) * 4


def test_without_calibration(folder: Path, tmp_path: Path) -> None:
    found = estimate(folder, tmp_path / "out", None, stage={"method": "magnitude"})
    assert (found.activation_bytes, found.seconds) == (0, 0.0)
    assert found.host_bytes >= 3 * found.largest_block_bytes


NEEDS = Estimate(
    activations="host",
    activation_bytes=1000,
    model_bytes=1000,
    largest_block_bytes=100,
    device_bytes=0,
    host_bytes=5 << 30,
    disk_bytes=3 << 20,
    seconds=1.0,
)


def set_free(monkeypatch: pytest.MonkeyPatch, host: int, disk: int = 1 << 40) -> None:
    usage = type("Usage", (), {"free": disk})
    monkeypatch.setattr("secateur.checkpoint.write.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("secateur.streaming.estimate.available_host_bytes", lambda: host)


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 5 << 30)
    check_room(NEEDS, tmp_path / "out")
    set_free(monkeypatch, (5 << 30) - 1)
    with pytest.raises(SecateurError, match=r"expected 5\.0 GiB of free memory .*5\.0 GiB are fr"):
        check_room(NEEDS, tmp_path / "out")
    # Pages of a file may go.
    check_room(replace(NEEDS, activations="file"), tmp_path / "out")


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With 32 MiB for all that is small.
    set_free(monkeypatch, 1 << 40, 35 << 20)
    check_room(NEEDS, tmp_path / "out")
    set_free(monkeypatch, 1 << 40, (35 << 20) - 1)
    with pytest.raises(OutOfSpaceError, match=r"expected 35 MiB of free space for .*has 35 MiB"):
        check_room(NEEDS, tmp_path / "out")
    # What an interrupted run has on the disk needs no more room.
    check_room(NEEDS, tmp_path / "out", already=1)
    check_room(NEEDS, tmp_path / "out", already=1 << 30)


def test_a_job_without_room_does_not_begin(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, 1000)
    with pytest.raises(SecateurError, match="of free memory for the largest block"):
        stream(folder, tmp_path / "out")
    set_free(monkeypatch, 1 << 40, 1000)
    with pytest.raises(OutOfSpaceError, match="of free space for"):
        stream(folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_place_that_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.streaming.activations.available_host_bytes", lambda: 1000)
    assert choose_home("auto", 500, CPU) == "host"
    assert choose_home("auto", 501, CPU) == "file"
    assert choose_home("host", 501, CPU) == "host"
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (300, 1000))
    assert choose_home("auto", 100, torch.device("cuda")) == "device"
    assert choose_home("auto", 101, torch.device("cuda")) == "host"


@pytest.mark.parametrize(
    ("num_bytes", "pinned"),
    [(2, 2), (4, 4), (5, 8), (6, 8), (2**33, 2**33), (2**33 + 2, 2**34), (10 << 30, 16 << 30)],
)
def test_pinned_memory_comes_in_powers_of_two(num_bytes: int, pinned: int) -> None:
    assert buffers_on_host(num_bytes, torch.device("cuda")) == pinned
    assert bytes_on_host((num_bytes + 1) // 2, torch.device("cuda")) == pinned // 2
    assert buffers_on_host(num_bytes, CPU) == num_bytes
    assert bytes_on_host(num_bytes, CPU) == num_bytes


def test_blocks_on_a_gpu_are_reckoned_as_their_copies_are_pinned() -> None:
    block = torch.nn.Linear(3, 5, device="meta")  # 60 and 20 bytes
    assert _bytes_of_copy(block, torch.device("cuda")) == 64 + 32
    assert _bytes_of_copy(block, CPU) == 80


def test_free_memory_is_below_what_there_is() -> None:
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert 0 < available_host_bytes() <= total


def test_a_system_that_does_not_tell_has_memory_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.models.host_memory._MEMINFO", tmp_path / "none")
    assert available_host_bytes() == sys.maxsize


def test_the_limits_of_a_container_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()
    inner = tmp_path / "root" / (own[0] if own else "")
    inner.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("secateur.models.host_memory._CGROUPS", tmp_path / "root")
    whole = available_host_bytes()

    def limit(folder: Path, most: str) -> None:
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 400\nactive_file 100\ninactive_file 200\n")

    limit(inner, "max")
    assert available_host_bytes() > whole // 2
    # 700 bytes are taken, of which 300 are files that can be read again.
    limit(inner, "1000")
    assert available_host_bytes() == (600 if own else whole)
    limit(tmp_path, "500")
    assert available_host_bytes() == (100 if own else whole)
    limit(tmp_path, "200")
    assert available_host_bytes() == (0 if own else whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers(tmp_path: Path, dtype: torch.dtype) -> None:
    for home in ("device", "host", "file"):
        first, second = (buffer_maker(home, CPU, tmp_path)(7, dtype) for _ in range(2))
        assert (first.shape, first.dtype, first.device.type) == ((7,), dtype, "cpu")
        first.fill_(3)
        second.fill_(4)
    make = buffer_maker("file", CPU, tmp_path)
    first, second = make(7, dtype), make(9, dtype)
    first.fill_(3)
    second.fill_(4)
    assert (first == 3).all()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    itemsize = first.element_size()
    assert sizes == {"activations-0.bin": 7 * itemsize, "activations-1.bin": 9 * itemsize}
