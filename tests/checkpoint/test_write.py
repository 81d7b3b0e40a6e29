"""What a written folder holds, and that an old one survives whatever goes wrong."""

import errno
import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import VOCAB_SIZE, tiny_model
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from word_tokenizer import WORDS, save_tiny_llama

from secateur.checkpoint.card import model_card
from secateur.checkpoint.manifest import MANIFEST_FILE, manifest_faults
from secateur.checkpoint.verify import verify_checkpoint
from secateur.checkpoint.write import RECIPE_FILE, check_output, write_checkpoint
from secateur.cli.written import write_whole
from secateur.compress import compress, compress_with_report
from secateur.compress_streaming import compress_streaming
from secateur.errors import OutOfSpaceError, SecateurError, VerificationError
from secateur.recipe import load_recipe, recipe_from_dict
from secateur.report.page import render_report
from secateur.report.record import (
    REPORT_FILE,
    FactorRecord,
    PruneRecord,
    QualityRecord,
    Report,
    load_report,
    report_from_text,
)

RECIPE: dict[str, Any] = {
    "stages": [
        {"stage": "drop_blocks", "blocks": [1]},
        {
            "stage": "prune",
            "method": "wanda",
            "pattern": "2:4",
            "ignore": ["re:.*q_proj"],
            "overrides": [{"targets": ["re:.*down_proj"], "sparsity": 0.25}],
        },
    ]
}
MAGNITUDE = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}


def some_ids() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (8, 16), generator=generator)


def words() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, **{f"w{number}": number + 3 for number in range(100)}}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


def files_in(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def old_output(folder: Path) -> dict[str, bytes | None]:
    """A folder with an older model and something of its owner's."""
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("mine")
    shards = {"model.safetensors": b"old weights", "model-00001-of-00002.safetensors": b"old shard"}
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    listed = {"files": {name: {} for name in shards}}
    (folder / MANIFEST_FILE).write_text(json.dumps(listed), encoding="utf-8")
    return files_in(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel, Report]:
    folder = tmp_path_factory.mktemp("made") / "out"
    model = tiny_model("llama", 3)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, bos_token_id=1, eos_token_id=[2, 5]
    )
    _, report = compress_with_report(
        model, RECIPE, calibration=some_ids(), output=folder, tokenizer=words(), seed=3
    )
    return folder, model, report


# What is there.


def test_every_file_is_there(made: tuple[Path, PreTrainedModel, Report]) -> None:
    folder, _, _ = made
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        RECIPE_FILE,
        REPORT_FILE,
        MANIFEST_FILE,
    }
    assert (RECIPE_FILE, REPORT_FILE) == ("secateur_recipe.yaml", "secateur_report.json")
    listed = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    assert set(listed) == {path.name for path in folder.iterdir()} - {MANIFEST_FILE}
    assert manifest_faults(folder) == []
    assert all(check.passed for check in verify_checkpoint(folder))
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_tokenizer_and_generation_settings_come_along(
    made: tuple[Path, PreTrainedModel, Report],
) -> None:
    folder, _, _ = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == words().get_vocab()
    assert tokenizer.chat_template == words().chat_template
    settings = GenerationConfig.from_pretrained(folder)
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.9)
    assert settings.eos_token_id == [2, 5]


def test_tokenizer_of_a_folder_comes_along(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "in")
    words().save_pretrained(tmp_path / "in")
    compress(tmp_path / "in", MAGNITUDE, output=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w5").input_ids == [8]
    assert tokenizer.chat_template == words().chat_template


def test_without_a_tokenizer_there_is_none(tmp_path: Path) -> None:
    compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*token*"))


def test_recipe_reads_back(made: tuple[Path, PreTrainedModel, Report]) -> None:
    folder, _, report = made
    recipe = recipe_from_dict(RECIPE)
    assert load_recipe(folder / RECIPE_FILE) == recipe
    assert recipe_from_dict(report.recipe) == recipe
    assert yaml.safe_load((folder / RECIPE_FILE).read_text())["version"] == 2


def test_written_recipe_makes_the_same_model_again(
    made: tuple[Path, PreTrainedModel, Report],
) -> None:
    folder, model, _ = made
    again = compress(tiny_model("llama", 3), folder / RECIPE_FILE, calibration=some_ids())
    expected = model.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_report_reads_back(made: tuple[Path, PreTrainedModel, Report]) -> None:
    folder, _, report = made
    assert load_report(folder) == load_report(folder / REPORT_FILE) == report
    assert report_from_text(report.to_json()) == report
    assert report.model.num_blocks == 3
    assert report.size.num_blocks == 2
    assert report.calibration is not None
    assert (report.calibration.seed, report.calibration.num_tokens) == (3, 128)
    assert report.created.endswith("+00:00")


def test_report_says_what_is_in_the_file(made: tuple[Path, PreTrainedModel, Report]) -> None:
    folder, _, report = made
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]
    assert report.size.num_parameters == sum(tensor.numel() for tensor in tensors)
    assert report.size.num_bytes == sum(tensor.numel() * 4 for tensor in tensors)
    assert report.size.num_zeros == sum(int((tensor == 0).sum()) for tensor in tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1, 1e300, 5e-324])
def test_report_with_odd_numbers_reads_back(
    made: tuple[Path, PreTrainedModel, Report], value: float
) -> None:
    quality = QualityRecord(
        text="a.txt", perplexity=value, standard_error=value, num_tokens=5, max_seq_length=8
    )
    report = replace(made[2], quality=(quality,))
    text = report.to_json()
    json.loads(text, parse_constant=pytest.fail)
    back = report_from_text(text)
    (found,) = back.quality
    if math.isnan(value):
        assert math.isnan(found.perplexity)
        assert math.isnan(found.standard_error)
        assert replace(back, quality=()) == replace(report, quality=())
    else:
        assert back == report
    assert back.to_json() == text


def test_model_card(made: tuple[Path, PreTrainedModel, Report]) -> None:
    folder, _, report = made
    text = (folder / "README.md").read_text(encoding="utf-8")
    empty, header, body = text.split("---\n", maxsplit=2)
    assert empty == ""
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "tags": ["secateur", "pruned"],
    }
    assert "| blocks | 3 | 2 |" in body
    assert f"| of which zero | | {report.size.num_zeros:,} |" in body
    recipe = body.split("```yaml\n")[1].split("```")[0]
    assert recipe == (folder / RECIPE_FILE).read_text(encoding="utf-8")
    assert "8 samples, 128 tokens, seed 3, from token tensor" in body
    assert "- block 1 dropped (named in the recipe)" in body
    assert "{" not in text.replace(recipe, "")


def test_the_card_says_which_model_has_a_perplexity(
    made: tuple[Path, PreTrainedModel, Report],
) -> None:
    dense = QualityRecord(
        text="a.txt",
        when="before",
        perplexity=38.8249,
        standard_error=1.8351,
        num_tokens=5,
        max_seq_length=8,
    )
    report = replace(made[2], quality=(dense, replace(dense, when="after", perplexity=39.63)))
    card = model_card(recipe_from_dict(RECIPE), report, is_compact=False)
    assert "- perplexity before: 38.82 ± 1.84 on a.txt (windows of 8 tokens)." in card
    assert "- perplexity after: 39.63 ± 1.84 on a.txt (windows of 8 tokens)." in card


def test_the_card_says_what_factors_keep(tmp_path: Path) -> None:
    stages = [
        {"stage": "factor", "method": "svd", "rank": 16, "targets": ["re:.*down_proj"]},
        {"stage": "prune", "method": "magnitude", "pattern": "2:4", "targets": ["re:.*up_proj"]},
    ]
    _, report = compress_with_report(
        tiny_model("llama", 2), {"stages": stages}, output=tmp_path / "out"
    )
    factors, _ = report.stages
    assert isinstance(factors, FactorRecord)
    body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    kept = f"{factors.kept_of_factored:.1%}"
    assert f"- 2 matrices factored by svd, {kept} of their values kept." in body
    # Factors make the checkpoint compact, and so 2:4 matrices are packed.
    assert "- magnitude, 2:4: 50.00% zeros in 2 matrices.\n" in body


def test_the_card_says_that_laser_saves_nothing(tmp_path: Path) -> None:
    cut = {"matrix": "mlp_out", "block": 1, "fraction": 0.25}
    stages = [{"stage": "factor", "method": "laser", "interventions": [cut]}]
    compress(tiny_model("llama", 2), {"stages": stages}, output=tmp_path / "out")
    body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- 1 matrix cut in rank by laser, all its values still stored.\n" in body


@pytest.mark.parametrize(
    ("pattern", "is_compact", "warns"),
    [
        ("2:4", True, False),
        ("1:4", True, False),
        ("2:4", False, True),
        ("3:4", True, True),
        ("unstructured", True, True),
    ],
)
def test_the_card_warns_of_zeros_that_are_stored(
    made: tuple[Path, PreTrainedModel, Report], pattern: str, is_compact: bool, warns: bool
) -> None:
    report = made[2]
    stages = tuple(
        replace(stage, pattern=pattern) if isinstance(stage, PruneRecord) else stage
        for stage in report.stages
    )
    card = model_card(recipe_from_dict(RECIPE), replace(report, stages=stages), is_compact)
    assert ("Zeros in a dense file bring neither size nor speed" in card) is warns


def test_the_card_leaves_zeros_out_where_nothing_pruned(
    made: tuple[Path, PreTrainedModel, Report],
) -> None:
    report = made[2]
    bare = replace(report, stages=(), size=replace(report.size, num_zeros=0))
    card = model_card(recipe_from_dict(RECIPE), bare, is_compact=False)
    assert "which zero" not in card
    assert "|\n| bytes of weights |" in card


def test_files_may_be_read_by_those_who_may_read_the_folder(
    made: tuple[Path, PreTrainedModel, Report],
) -> None:
    folder, _, _ = made
    readable = stat.S_IMODE(folder.stat().st_mode) & 0o444
    assert readable & 0o400
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == readable, path.name
        assert not stat.S_IMODE(path.stat().st_mode) & 0o111, path.name


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = tiny_model("llama")
    compress(model, MAGNITUDE, output=tmp_path / "out", max_shard_size="40KB")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert "model.safetensors" not in shards
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert set(index["weight_map"]) == set(model.state_dict())
    listed = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())["files"]
    assert set(shards) < set(listed)
    assert all(check.passed for check in verify_checkpoint(tmp_path / "out"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in reloaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


# Where it is written.


@pytest.mark.parametrize("kind", [str, Path, lambda path: f"{path}/"])
def test_new_folders_are_made_on_the_way(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    compress(tiny_model("llama"), MAGNITUDE, output=kind(tmp_path / "new" / "er" / "out"))
    assert (tmp_path / "new" / "er" / "out" / REPORT_FILE).is_file()
    assert [path.name for path in (tmp_path / "new" / "er").iterdir()] == ["out"]


def test_an_output_that_no_weights_could_be_written_to(tmp_path: Path) -> None:
    output = os.fsdecode(os.fsencode(tmp_path) + b"/out\xff")
    with pytest.raises(SecateurError, match=r"whose path is UTF-8.*out\\udcff"):
        check_output(Path(output), overwrite=False)


@pytest.mark.parametrize("streams", [False, True])
def test_texts_may_be_called_what_is_no_utf8(tmp_path: Path, streams: bool) -> None:
    """It is only told of: all the work would be lost by it."""
    save_tiny_llama(tmp_path / "model")
    text = os.fsdecode(os.fsencode(tmp_path) + b"/text\xff.txt")
    Path(text).write_text(" ".join(WORDS), encoding="utf-8")
    options: dict[str, Any] = {"num_calibration_samples": 2, "max_seq_length": 8}
    run = compress_streaming if streams else compress_with_report
    output = tmp_path / "out"
    run(tmp_path / "model", MAGNITUDE, calibration=text, output=output, **options)
    assert "text\\udcff.txt" in (output / "README.md").read_text(encoding="utf-8")
    report = load_report(output)
    assert report.calibration is not None
    assert report.calibration.source == text
    write_whole(tmp_path / "page.html", render_report(report))
    assert "text\\udcff.txt" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_relative_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compress(tiny_model("llama"), MAGNITUDE, output="out")
    assert (tmp_path / "out" / REPORT_FILE).is_file()


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out")
    assert (tmp_path / "out" / REPORT_FILE).is_file()
    with pytest.raises(SecateurError, match="is not empty"):
        check_output(tmp_path / "out", overwrite=False)
    check_output(tmp_path / "out", overwrite=True)
    check_output(tmp_path / "elsewhere", overwrite=False)


def test_overwriting_leaves_nothing_of_the_old_but_what_others_put_there(tmp_path: Path) -> None:
    output = tmp_path / "out"
    old_output(output)
    (output / "README.md").write_text("mine, too")
    (output / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    compress(tiny_model("llama"), MAGNITUDE, output=output, overwrite=True)
    assert (output / "notes" / "mine.txt").read_text() == "mine"
    assert (output / "elsewhere").readlink() == tmp_path
    assert (output / "README.md.old").read_text() == "mine, too"
    assert (output / "README.md").read_text() != "mine, too"
    assert not (output / "model-00001-of-00002.safetensors").exists()
    assert all(check.passed for check in verify_checkpoint(output))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("manifest", ["{}", "no JSON"])
def test_where_nothing_tells_whose_files_are_all_go(tmp_path: Path, manifest: str) -> None:
    output = tmp_path / "out"
    old_output(output)
    (output / MANIFEST_FILE).write_text(manifest)
    compress(tiny_model("llama"), MAGNITUDE, output=output, overwrite=True)
    assert not (output / "notes").exists()


def test_an_output_may_be_compressed_further(tmp_path: Path) -> None:
    compress(tiny_model("llama", 3), MAGNITUDE, output=tmp_path / "first")
    recipe = {"stages": [{"stage": "drop_blocks", "blocks": [1]}]}
    compress(tmp_path / "first", recipe, output=tmp_path / "second")
    assert load_report(tmp_path / "second").size.num_blocks == 2
    assert all(check.passed for check in verify_checkpoint(tmp_path / "second"))


def test_old_output_is_whole_until_the_new_one_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    before = old_output(output)
    seen = []

    def prove(model: Any, folder: Path, *_: Any) -> None:
        assert folder != output
        assert manifest_faults(folder) == []
        seen.append(files_in(output))

    monkeypatch.setattr("secateur.checkpoint.write.require_same_model", prove)
    compress(tiny_model("llama"), MAGNITUDE, output=output, overwrite=True)
    assert seen == [before]
    assert not (output / "model-00001-of-00002.safetensors").exists()


# What goes wrong on the way.


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES: list[tuple[str, BaseException, type[BaseException]]] = [
    ("secateur.checkpoint.write.write_manifest", RuntimeError("crash"), RuntimeError),
    ("secateur.checkpoint.write.write_manifest", KeyboardInterrupt(), KeyboardInterrupt),
    ("secateur.checkpoint.write.write_manifest", FULL, OutOfSpaceError),
    (
        "secateur.checkpoint.write.write_manifest",
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OutOfSpaceError,
    ),
    ("secateur.checkpoint.write.write_manifest", OSError(errno.EIO, "I/O error"), SecateurError),
    ("secateur.checkpoint.write.model_card", FULL, OutOfSpaceError),
    (
        "secateur.checkpoint.write.require_same_model",
        VerificationError("not the same"),
        VerificationError,
    ),
    ("secateur.checkpoint.write.require_same_model", RuntimeError("crash"), RuntimeError),
    ("transformers.PreTrainedModel.save_pretrained", MemoryError(), MemoryError),
    ("transformers.PreTrainedModel.save_pretrained", FULL, OutOfSpaceError),
    ("transformers.PreTrainedTokenizerFast.save_pretrained", FULL, OutOfSpaceError),
    ("secateur.report.record.Report.to_json", RuntimeError("crash"), RuntimeError),
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("place", "error", "expected"),
    FAILURES,
    ids=[f"{place.rpartition('.')[2]}-{error!r:.20}" for place, error, _ in FAILURES],
)
def test_crash_leaves_the_old_output_or_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: BaseException,
    expected: type[BaseException],
    overwrite: bool,
) -> None:
    if overwrite:
        old_output(tmp_path / "out")
    before = files_in(tmp_path)
    monkeypatch.setattr(place, failing(error))
    with pytest.raises(expected) as caught:
        compress(
            tiny_model("llama"),
            MAGNITUDE,
            output=tmp_path / "out",
            tokenizer=words(),
            overwrite=overwrite,
        )
    assert type(caught.value) is expected
    assert files_in(tmp_path) == before
    monkeypatch.undo()
    compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out", overwrite=overwrite)
    assert all(check.passed for check in verify_checkpoint(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_messages_name_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    for error, message in [
        (FULL, f"no space left to write {output}: .*No space left on device"),
        (OSError(errno.EACCES, "Permission denied"), f"{output} cannot be written: .*denied"),
    ]:
        monkeypatch.setattr("secateur.checkpoint.write.write_manifest", failing(error))
        with pytest.raises(SecateurError, match=message):
            compress(tiny_model("llama"), MAGNITUDE, output=output)


@pytest.mark.parametrize("failing_call", [1, 2])
def test_old_output_comes_back_if_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    output = tmp_path / "out"
    before = old_output(output)
    rename = Path.rename
    calls = []

    def sometimes(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing_call:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", sometimes)
    with pytest.raises(SecateurError, match=f"{output} cannot be written: .*Permission denied"):
        compress(tiny_model("llama"), MAGNITUDE, output=output, overwrite=True)
    assert len(calls) == failing_call + (failing_call == 2)
    assert files_in(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_that_is_not_what_was_to_be_written_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if transformers wrote one weight wrongly."""
    save = PreTrainedModel.save_pretrained

    def save_another(self: PreTrainedModel, folder: Path, **options: Any) -> None:
        weight = self.get_parameter("model.norm.weight").data
        kept = weight.clone()
        weight[3] += 1e-6
        save(self, folder, **options)
        weight.copy_(kept)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_another)
    with pytest.raises(VerificationError, match=r"model\.norm\.weight is not the same") as caught:
        compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out")
    assert caught.value.exit_code == 4
    assert files_in(tmp_path) == {}


def test_report_is_made_once_the_weights_are_written(tmp_path: Path) -> None:
    model = tiny_model("llama")
    _, report = compress_with_report(model, MAGNITUDE)
    seen: list[int] = []

    def make_report() -> Report:
        seen.append(len(list(tmp_path.glob(".out.*.partial/model.safetensors"))))
        return report

    recipe = recipe_from_dict(MAGNITUDE)
    returned = write_checkpoint(model, None, recipe, make_report, tmp_path / "out")
    assert seen == [1]
    assert returned is report
    with pytest.raises(SecateurError, match="is not empty"):
        write_checkpoint(model, None, recipe, make_report, tmp_path / "out")
    assert seen == [1]


def test_report_of_another_model_is_not_put_in_place(tmp_path: Path) -> None:
    _, report = compress_with_report(tiny_model("llama"), MAGNITUDE)
    recipe = recipe_from_dict(MAGNITUDE)
    with pytest.raises(VerificationError, match="does not describe the model"):
        write_checkpoint(
            tiny_model("llama", seed=1), None, recipe, lambda: report, tmp_path / "out"
        )
    assert files_in(tmp_path) == {}


# Neighbours of the output.


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out.old", "out.partial", ".out.partial", "out2"])
def test_what_is_beside_the_output_is_left_alone(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    if overwrite:
        old_output(tmp_path / "out")
    backup = old_output(tmp_path / name)
    compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out", overwrite=overwrite)
    assert files_in(tmp_path / name) == backup
    assert {path.name for path in tmp_path.iterdir()} == {"out", name}


def test_output_that_is_a_link_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for _ in range(2):
        compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out", overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {"disk", "out"}
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / REPORT_FILE).is_file()


def test_output_that_is_a_link_to_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "out")
    assert (tmp_path / "disk" / REPORT_FILE).is_file()


def test_crash_leaves_no_empty_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("crash")
    monkeypatch.setattr("secateur.checkpoint.write.write_manifest", failing(error))
    with pytest.raises(RuntimeError, match="crash"):
        compress(tiny_model("llama"), MAGNITUDE, output=tmp_path / "new" / "er" / "out")
    assert files_in(tmp_path) == {}
