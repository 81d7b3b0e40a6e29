"""Jobs that an error or a full disk ended, and what resuming makes of them."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from safetensors.torch import save_file
from streaming_jobs import CHAIN, STAGE, factors, recipe_of, samples, save, stream, weight_bytes
from thoroughness import most_telling
from transformers.models.llama.modeling_llama import LlamaMLP

from secateur.calibration.inputs import BlockInputs
from secateur.compress import compress
from secateur.errors import OutOfSpaceError, SecateurError
from secateur.models.swap import compressed_modules
from secateur.plain import to_plain
from secateur.report.record import FactorRecord, PruneRecord, Report
from secateur.streaming import rest, shards
from secateur.streaming.finished import BlockJournal
from secateur.streaming.job import WEIGHTS_FOLDER, job_folder
from secateur.streaming.source import BlockSource

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": recipe_of(method="magnitude"),
    "sparsegpt": recipe_of(method="sparsegpt"),
    "wanda++": recipe_of(method="wanda++", reconstruct={"rounds": 1, "samples_per_round": 3}),
    "best-2:4": recipe_of(method="best-2:4", reconstruct={"rounds": 1}),
    "undone": recipe_of(method="wanda++", reconstruct={"rounds": 1, "rate": 20.0}),
    "factors": factors(method="svd-whitened", rank=16),
    "a budget": factors(method="svd-whitened", budget=0.1, importance="output"),
    "factors by weights": factors(method="svd", budget=0.1),
    "beside 2:4": factors(method="sparse-plus-low-rank", rank=16, rounds=2),
}
FORMS = most_telling(
    [(form, name) for form in ("compact", "auto") for name in METHODS],
    [
        *(("compact", name) for name in ("magnitude", "best-2:4", "a budget", "beside 2:4")),
        *(("auto", name) for name in ("wanda++", "undone", "factors by weights")),
    ],
)
FULL = OSError(errno.ENOSPC, "No space left on device")


class Stop(Exception):
    """Where a test ends a job."""


def old_output(folder: Path, output: Path) -> dict[str, bytes]:
    compress(folder, recipe_of(method="magnitude"), output=output)
    return weight_bytes(output)


def at_call(number: int, call: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """`call`, which fails the `number`-th time, counted from 1."""
    count = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            raise error
        return call(*arguments, **options)

    return counted


def records(report: Report) -> list[dict[str, Any]]:
    """What was done to blocks and matrices, without times."""
    (stage,) = report.stages
    assert isinstance(stage, PruneRecord | FactorRecord)
    plain: list[dict[str, Any]] = [*to_plain(stage)["blocks"], *to_plain(stage)["layers"]]
    return [{k: v for k, v in entry.items() if not k.startswith("seconds")} for entry in plain]


def test_files_that_a_killed_run_did_not_finish_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours, and those that safetensors writes under a name of its own before it renames them."""
    folder = save(tiny_model("llama", 2), tmp_path / "in")
    options = {"recipe": recipe_of(method="magnitude"), "calibration": None}
    stream(folder, tmp_path / "expected", **options)
    with monkeypatch.context() as patch:
        patch.setattr(CHAIN, "model_card", at_call(1, CHAIN.model_card, Stop()))
        with pytest.raises(Stop):
            stream(folder, tmp_path / "out", **options)
    weights = job_folder(tmp_path / "out") / WEIGHTS_FOLDER
    for name in (".tmpwO5dHt", "model-00001.safetensors.partial"):
        (weights / name).write_bytes(b"half")
    stream(folder, tmp_path / "out", resume=True, **options)
    names = {path.name for path in (tmp_path / "expected").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(("checkpoint_format", "name"), FORMS)
def test_every_method_is_resumed(
    checkpoint_format: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before block 1, and again before block 3."""
    folder = save(tiny_model("llama", 4).bfloat16(), tmp_path / "in")
    options = {"recipe": METHODS[name], "calibration": samples()}
    options["checkpoint_format"] = checkpoint_format
    if name in ("magnitude", "factors by weights"):
        options["calibration"] = None
    expected = stream(folder, tmp_path / "expected", **options)
    for turn, block in enumerate((1, 3)):
        stopping = at_call(block + 1 if not turn else 3, BlockJournal.save, Stop())
        monkeypatch.setattr(BlockJournal, "save", stopping)
        with pytest.raises(Stop):
            stream(folder, tmp_path / "out", resume=turn > 0, **options)
        monkeypatch.undo()
        finished = sorted(path.name for path in job_folder(tmp_path / "out").glob("block-*"))
        assert finished == [f"block-{index:05d}.json" for index in range(block)]
    report = stream(folder, tmp_path / "out", resume=True, **options)
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "expected")
    assert records(report) == records(expected)
    assert (report.size, report.verification) == (expected.size, expected.verification)


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "gemma3"])
def test_blocks_are_read_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = save(tiny_model(name, 3), tmp_path / "in")
    stream(folder, tmp_path / "expected")
    monkeypatch.setattr(BlockJournal, "save", at_call(3, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out")
    monkeypatch.undo()
    stream(folder, tmp_path / "out", resume=True, activations="file")
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "expected")


def test_a_block_that_is_missing_among_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are written at once: a later one may be there first. None is read that is there."""
    folder = save(tiny_model("llama", 5), tmp_path / "in")
    stream(folder, tmp_path / "expected")
    monkeypatch.setattr(BlockJournal, "save", at_call(5, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out")
    monkeypatch.undo()
    (job_folder(tmp_path / "out") / "block-00001.json").unlink()
    write_beside(monkeypatch, writers=2)
    read: list[int] = []
    reading = BlockSource._begin
    monkeypatch.setattr(
        BlockSource,
        "_begin",
        lambda self, index: (read.append(index), reading(self, index))[1],
    )
    stream(folder, tmp_path / "out", resume=True)
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "expected")
    # For its form; to be pruned; and to be run as they were written.
    assert read == [0, 1, 4, 0, 1, 2, 3, 4]


_FORWARD = LlamaMLP.forward


def short_of_memory_at(number: int) -> Callable[..., Any]:
    """An MLP that finds no memory for its `number`-th batch of more than two samples.

    What it gives depends on the batch, as it may by the rounding of any kernel.
    """
    count = 0

    def limited(module: Any, hidden: Any) -> Any:
        nonlocal count
        count += len(hidden) > 2
        if count == number and len(hidden) > 2:
            count += 1
            raise torch.OutOfMemoryError("no memory, as the test wants it")
        return _FORWARD(module, hidden) * (1.0 + 0.01 * len(hidden))

    return limited


# Five samples go through every block twice: to be watched, and once it is changed.
TWICE = {
    "pruned": recipe_of(method="sparsegpt"),
    "factored": factors(method="svd-whitened", rank=16, in_turn=False),
}


@pytest.mark.parametrize("number", [3, 4], ids=["watched", "changed"])
@pytest.mark.parametrize("name", TWICE)
def test_batches_that_became_smaller_stay_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """Memory was short in block 1, the job is killed after block 2 and resumed with memory."""
    folder = save(tiny_model("llama", 4), tmp_path / "in")
    options = {"recipe": TWICE[name]}
    monkeypatch.setattr(LlamaMLP, "forward", short_of_memory_at(0))
    stream(folder, tmp_path / "roomy", **options)
    monkeypatch.setattr(LlamaMLP, "forward", short_of_memory_at(number))
    expected = stream(folder, tmp_path / "expected", **options)
    assert weight_bytes(tmp_path / "expected") != weight_bytes(tmp_path / "roomy")
    monkeypatch.setattr(LlamaMLP, "forward", short_of_memory_at(number))
    monkeypatch.setattr(BlockJournal, "save", at_call(4, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out", **options)
    monkeypatch.undo()
    monkeypatch.setattr(LlamaMLP, "forward", short_of_memory_at(0))
    report = stream(folder, tmp_path / "out", resume=True, **options)
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "expected")
    assert records(report) == records(expected)


@pytest.mark.parametrize("name", TWICE)
def test_finished_blocks_after_one_that_memory_is_short_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Block 1 is missing and made anew in smaller batches than block 2 was made in."""
    folder = save(tiny_model("llama", 4), tmp_path / "in")
    options = {"recipe": TWICE[name]}
    monkeypatch.setattr(BlockJournal, "save", at_call(4, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out", **options)
    monkeypatch.undo()
    (job_folder(tmp_path / "out") / "block-00001.json").unlink()
    # The first batch is run through block 0.
    monkeypatch.setattr(LlamaMLP, "forward", short_of_memory_at(2))
    report = stream(folder, tmp_path / "out", resume=True, **options)
    assert [bool(entry["note"]) for entry in records(report)[:4]] == [False, True, False, False]


def test_finished_24_blocks_are_run_dense_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU 2:4 kernels would add in another order than the products of the first run."""
    folder = save(tiny_model("llama", 3).bfloat16(), tmp_path / "in")
    monkeypatch.setattr(BlockJournal, "save", at_call(3, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out", checkpoint_format="compact")
    monkeypatch.undo()
    compressed: list[int] = []
    passing = BlockInputs.pass_through

    def watched(self: BlockInputs, block: Any, *of: Any) -> None:
        compressed.append(len(compressed_modules(block)))
        passing(self, block, *of)

    monkeypatch.setattr(BlockInputs, "pass_through", watched)
    stream(folder, tmp_path / "out", resume=True, checkpoint_format="compact")
    assert compressed == [0, 0]


def test_ranks_are_not_shared_out_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tiny_model("llama", 3), tmp_path / "in")
    options = {"recipe": METHODS["a budget"]}
    monkeypatch.setattr(BlockJournal, "save", at_call(2, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out", **options)
    monkeypatch.undo()
    monkeypatch.setattr("secateur.stages.factor.output_spectra", at_call(1, min, Stop()))
    stream(folder, tmp_path / "out", resume=True, **options)


def test_ranks_that_were_edited_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tiny_model("llama", 3), tmp_path / "in")
    options = {"recipe": METHODS["factors by weights"]}
    monkeypatch.setattr(BlockJournal, "save", at_call(2, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out", **options)
    monkeypatch.undo()
    path = job_folder(tmp_path / "out") / "ranks.json"
    written = path.read_text(encoding="utf-8")
    edited = json.loads(written)
    edited["ranks"] |= {next(iter(edited["ranks"])): 1}
    path.write_text(json.dumps(edited), encoding="utf-8")
    with pytest.raises(SecateurError, match=r"ranks\.json has other content .*delete .*out\.job"):
        stream(folder, tmp_path / "out", resume=True, **options)
    path.write_text(written, encoding="utf-8")
    stream(folder, tmp_path / "out", resume=True, **options)


@pytest.mark.parametrize("name", ["a budget", "factors by weights"])
def test_ranks_of_a_run_that_finished_no_block_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = save(tiny_model("llama", 3), tmp_path / "in")
    monkeypatch.setattr(BlockJournal, "save", at_call(1, BlockJournal.save, Stop()))
    with pytest.raises(Stop):
        stream(folder, tmp_path / "out", recipe=METHODS[name])
    assert not job_folder(tmp_path / "out").exists()


Fault = tuple[Any, str, Callable[..., Any]]
"""Where a function is, its name, and one that fails instead."""


def full_at(place: Any, name: str, number: int) -> Fault:
    return place, name, at_call(number, getattr(place, name), FULL)


def save_file_on_a_small_disk(number: int) -> Callable[..., Any]:
    """The system itself refuses to write the `number`-th file."""
    count = 0

    def limited(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if count == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            save_file(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


FULL_DISKS: dict[str, Callable[[], Fault]] = {
    "a block, as the system says": lambda: (shards, "save_file", save_file_on_a_small_disk(2)),
    "a block": lambda: full_at(shards, "save_file", 3),
    "flushing": lambda: full_at(os, "fsync", 8),
    # Before blocks the facts; of a block the weights, then the entry.
    "an entry": lambda: full_at(os, "replace", 5),
    "the rest": lambda: full_at(shards, "save_file", 4),
    "the index": lambda: full_at(rest, "write_index", 1),
    "the manifest": lambda: full_at(CHAIN, "write_manifest", 1),
    "renaming": lambda: full_at(CHAIN, "put_in_place", 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama", 3), tmp_path_factory.mktemp("model") / "in")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, bytes]:
    stream(folder, folder.parent / "expected")
    return weight_bytes(folder.parent / "expected")


def write_beside(monkeypatch: pytest.MonkeyPatch, writers: int = 1) -> None:
    """As on a GPU: blocks are read into the same memory, and written while others are computed."""

    def reading(*of: Any) -> BlockSource:
        return BlockSource(*of[:3], "mapped" if of[3:] == ("mapped",) else "reused")

    monkeypatch.setattr(CHAIN, "BlockSource", reading)
    monkeypatch.setattr(CHAIN, "write_rest", lambda *of: rest.write_rest(*of[:5], writers))
    monkeypatch.setattr(STAGE, "BlockJournal", lambda *of: BlockJournal(*of[:4], writers, *of[5:]))


@pytest.mark.parametrize("writers", [1, 2, 5])
def test_blocks_written_beside_the_work(
    folder: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writers: int,
) -> None:
    write_beside(monkeypatch, writers)
    stream(folder, tmp_path / "out")
    assert weight_bytes(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("name", "beside"),
    most_telling(
        [(name, beside) for name in FULL_DISKS for beside in (False, True)],
        # Only of what blocks are written as does it matter who writes.
        [*((name, False) for name in FULL_DISKS), ("a block", True), ("an entry", True)],
    ),
)
def test_a_full_disk(
    folder: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    beside: bool,
) -> None:
    output = tmp_path / "out"
    before = old_output(folder, output)
    monkeypatch.setattr(*FULL_DISKS[name]())
    if beside:
        write_beside(monkeypatch)
    with pytest.raises(OutOfSpaceError, match=r"no space left to write .*out"):
        stream(folder, output, overwrite=True)
    monkeypatch.undo()
    assert weight_bytes(output) == before
    entries = sorted(job_folder(output).glob("block-*.json"))
    assert entries
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in entries}
    looked_at: list[Path] = []
    rewritten = BlockJournal.save
    monkeypatch.setattr(
        BlockJournal,
        "save",
        lambda self, index, *rest: (
            looked_at.append(self._entry(index)),
            rewritten(self, index, *rest),
        ),
    )
    stream(folder, output, overwrite=True, resume=True)
    assert not set(looked_at) & set(kept)
    assert weight_bytes(output) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_room_for_hidden_states(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(*_: int) -> None:
        raise FULL

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(OutOfSpaceError, match="no space left to write"):
        stream(folder, tmp_path / "out", activations="file")
    assert list(tmp_path.iterdir()) == []


def test_another_fault_of_writing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = OSError(errno.EIO, "I/O error")
    monkeypatch.setattr(shards, "save_file", at_call(2, save_file, fault))
    with pytest.raises(SecateurError, match=r"weights cannot be written: .*I/O error") as caught:
        stream(folder, tmp_path / "out")
    assert not isinstance(caught.value, OutOfSpaceError)
    monkeypatch.undo()
    stream(folder, tmp_path / "out", resume=True)
