"""The command line as a program sees it: standard output, standard error, exit code."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import tiny_model
from forked import run_python
from safetensors.torch import load_file

import secateur_command
from secateur.cli import main
from secateur.evaluate.result import Estimate, TaskResult
from secateur.report.record import DropRecord, PruneRecord, Report, load_report
from secateur_command.front_page import SUMMARIES
from secateur_kernels.dispatch import Table as Times
from secateur_kernels.library import LibraryStatus
from secateur_kernels.version import __version__

BOOKS = Path(__file__).parents[2] / "examples" / "books-8m"
COMMANDS = ["inspect", "compress", "evaluate", "generate", "report", "verify"]
CALIBRATED = ["--calibration", str(BOOKS / "calibration.txt")]
COMMANDS += ["recover", "inherit", "search", "attention", "tune", "doctor", "demo"]


@dataclass(frozen=True)
class Output:
    code: Any
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """Standard error without its line breaks."""
        return " ".join(self.stderr.split())


Cli = Callable[..., Output]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `secateur` with these arguments, in this process."""

    def run(*arguments: object) -> Output:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        stdout, stderr = capfd.readouterr()
        return Output(caught.value.code, stdout, stderr)

    return run


def good(output: Output) -> str:
    """What a command that worked said; it said nothing on standard error."""
    assert output.stderr == ""
    assert output.code in (0, None)
    return output.stdout


def refused(output: Output, message: str, code: int = 2) -> None:
    assert output.code == code
    assert output.error.startswith("error: ")
    assert message in output.error
    assert "Traceback" not in output.stderr
    assert output.stdout == ""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, standard output) of one compression of the bundled model by options."""
    folder = tmp_path_factory.mktemp("pruned") / "books"
    arguments = [
        *("compress", str(BOOKS), "--method", "wanda", "--pattern", "2:4"),
        *("--calibration", str(BOOKS / "calibration.txt")),
        *("--num-calibration-samples", "4", "--max-seq-length", "64", "--seed", "5"),
        *("--ignore", "re:.*q_proj", "--ignore", "re:.*k_proj", "--output", str(folder)),
    ]
    done = run_python("-m", "secateur", *arguments)
    assert done.returncode == 0, done.stderr
    # Not a terminal: no progress, no colours, no warnings.
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    return folder, done.stdout


# The program.


def test_version(cli: Cli) -> None:
    assert good(cli("--version")) == f"{__version__}\n"
    assert importlib.metadata.version("secateur") == __version__


def test_console_script() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="secateur")
    assert script.load() is secateur_command.main


FRONT_PAGE = """
import sys
from secateur_command import main
try:
    main()
finally:
    assert not {"torch", "transformers", "secateur"} & set(sys.modules)
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_the_front_page_is_the_same_without_what_takes_long(
    cli: Cli, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "secateur").write_text(FRONT_PAGE)
    command = [sys.executable, str(tmp_path / "secateur"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    expected = cli(*arguments)
    assert (done.returncode, done.stderr) == (expected.code or 0, expected.stderr)
    # The line of usage names the program that runs: pytest, here.
    shown, wanted = (
        [line for line in text.splitlines() if "Usage: " not in line]
        for text in (done.stdout, expected.stdout)
    )
    assert shown == wanted != []


@pytest.mark.parametrize("arguments", [["inspect"], ["report", "./no-such"], ["inspect", "--help"]])
def test_commands_run_from_the_front_page(
    cli: Cli, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cli(*arguments)
    monkeypatch.setattr(sys.modules[__name__], "main", secateur_command.main)
    assert cli(*arguments) == expected


WITHOUT = """
import sys
sys.modules["{missing}"] = None
from secateur_command import main
main()
"""


@pytest.mark.parametrize(("missing", "arguments"), [("typer", ["--help"]), ("rich", ["inspect"])])
def test_a_bare_install_says_what_the_program_needs(missing: str, arguments: list[str]) -> None:
    """As `pip install secateur` without the extra leaves it."""
    command = [sys.executable, "-c", WITHOUT.format(missing=missing), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: the program needs {missing}, which is not installed: "
        "pip install 'secateur[compress]'\n"
    )


def test_a_fault_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "secateur.cli", None)
    monkeypatch.setattr(sys, "argv", ["secateur", "inspect"])
    with pytest.raises(ModuleNotFoundError, match=r"secateur\.cli"):
        secateur_command.main()


def test_help_names_every_command_and_exit_code(cli: Cli) -> None:
    text = " ".join(good(cli("--help")).split())
    for command in COMMANDS:
        assert f"│ {command} " in text
    for meaning in ["0 done", "1 unexpected", "2 bad", "3 quality", "4 verification", "5 no space"]:
        assert meaning in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    text = good(cli(command, "--help"))
    assert f"secateur {command}" in text
    assert "--help" in text
    assert "<bool>" not in text, "flags take no value"


@pytest.mark.parametrize("command", SUMMARIES)
def test_usage_names_arguments_in_capitals(cli: Cli, command: str) -> None:
    (usage,) = [line for line in good(cli(command, "--help")).splitlines() if "Usage: " in line]
    _, arguments = usage.split("[OPTIONS]")
    assert arguments == arguments.upper()
    assert "[[" not in arguments


@pytest.mark.parametrize("command", ["compress", "recover", "inherit"])
def test_help_of_the_output_names_the_way_to_replace_it(cli: Cli, command: str) -> None:
    text = " ".join(good(cli(command, "--help")).replace("│", "").split())
    assert "new or empty, or one to replace with --overwrite." in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["inspect"],
        ["inspect", str(BOOKS), "extra"],
        ["inspect", str(BOOKS), "--frobnicate"],
        ["compress", str(BOOKS), "--method", "wanda"],
        ["compress", str(BOOKS), "--output", "x", "--sparsity", "half"],
        ["evaluate", str(BOOKS), "--batch-size", "many"],
        ["generate", str(BOOKS)],
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    output = cli(*arguments)
    assert output.code == 2
    assert output.stderr.startswith("Usage: ")
    assert output.stdout == ""


def test_interruption(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.cli.inspect.load_model", interrupt)
    output = cli("inspect", BOOKS)
    assert output.code == 130
    assert "Traceback" not in output.stderr


def test_a_device_without_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nMore of it.")

    monkeypatch.setattr("secateur.cli.inspect.load_model", fail)
    output = cli("inspect", BOOKS)
    assert output.code == 1
    expected = "error: out of memory: CUDA out of memory. Tried to allocate 8 GiB."
    assert output.stderr.strip() == expected


def test_what_nobody_expected_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints the trace and exits with 1."""

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("crash")

    monkeypatch.setattr("secateur.cli.inspect.load_model", crash)
    with pytest.raises(RuntimeError, match="crash"):
        cli("inspect", BOOKS)


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_environment_that_makes_no_sense(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    refused(cli("doctor"), "HF_HUB_OFFLINE must be one of")


def test_unknown_hub_id_offline(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = perf_counter()
    output = cli("inspect", "no-such-owner/no-such-model")
    assert perf_counter() - started < 3
    refused(
        output,
        "no-such-owner/no-such-model is no folder here, and the Hub's cache on this machine does "
        "not hold it; HF_HUB_OFFLINE forbids to fetch it",
    )


@pytest.mark.parametrize("command", [["inspect"], ["generate", "--prompt", "a"]])
def test_unknown_model(cli: Cli, command: list[str]) -> None:
    refused(cli(*command, "./no-such-folder"), "expected a model folder or a Hub id")


def test_messages_are_one_line_where_there_is_no_terminal(cli: Cli, tmp_path: Path) -> None:
    """So that a path can be found in them, or copied out of a log."""
    path = tmp_path / ("long" * 30)
    output = cli("report", path)
    assert output.code == 2
    assert str(path / "secateur_report.json") in output.stderr or str(path) in output.stderr
    assert output.stderr.count("\n") == 1


def test_brackets_in_messages_are_no_markup(cli: Cli) -> None:
    refused(cli("report", "[bold]no[/x]"), "but [bold]no[/x] is not a file")


@pytest.mark.parametrize("name", ["report.json", "secateur_report.json"])
def test_report_that_is_not_utf8(cli: Cli, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes("fenêtre".encode("latin-1"))
    refused(cli("report", file if name == "report.json" else tmp_path), "is not UTF-8 text")


# inspect


def test_inspect(cli: Cli) -> None:
    text = good(cli("inspect", BOOKS))
    first = text.partition("\n")[0]
    assert first == "LlamaForCausalLM: 8,392,960 parameters, 16.8 MB, 8 blocks at model.layers"
    for kind in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj"):
        (line,) = (line for line in text.splitlines() if kind in line)
        assert " Linear " in line
    assert "vector (norm or bias)" in text
    assert "tied" in text


def test_inspect_json(cli: Cli) -> None:
    values = json.loads(good(cli("inspect", BOOKS, "--json")))
    assert list(values) == [
        *("architecture", "num_parameters", "num_bytes", "num_blocks", "blocks"),
        *("matrices", "compressed", "removed", "untouched"),
    ]
    assert values["num_bytes"] == 2 * values["num_parameters"]
    assert (values["num_blocks"], values["blocks"]) == (8, "model.layers")
    assert len(values["matrices"]) == 8 * 7
    assert {
        "name": "model.layers.7.mlp.down_proj",
        "shape": [256, 768],
        "class": "Linear",
    } in values["matrices"]
    sizes = [entry["shape"][0] * entry["shape"][1] for entry in values["matrices"]]
    assert sum(sizes) == 8 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 768)
    # Two norms a block, the last norm, and the embedding that is the head.
    assert len(values["untouched"]) == 8 * 2 + 2
    assert values["untouched"][0]["name"] == "model.embed_tokens.weight"
    assert "lm_head.weight" in values["untouched"][0]["reason"]


def test_inspect_another_dtype(cli: Cli) -> None:
    values = json.loads(good(cli("inspect", BOOKS, "--json", "--dtype", "float32")))
    assert values["num_bytes"] == 4 * values["num_parameters"]
    refused(cli("inspect", BOOKS, "--dtype", "float8"), "expected dtype one of auto, bfloat16")


# compress


def prune_of(report: Report) -> PruneRecord:
    (stage,) = report.stages
    assert isinstance(stage, PruneRecord)
    return stage


def test_compress_by_options(pruned: tuple[Path, str]) -> None:
    folder, stdout = pruned
    assert stdout.splitlines()[-1] == f"wrote {folder}"
    assert "LlamaForCausalLM" in stdout
    assert "mlp.down_proj" in stdout
    report = load_report(folder)
    assert report.recipe["stages"][0]["method"] == "wanda"
    assert report.recipe["stages"][0]["ignore"] == ["re:.*q_proj", "re:.*k_proj"]
    assert len(prune_of(report).layers) == 8 * 5
    assert report.calibration is not None
    assert report.calibration.num_tokens == 4 * 64
    assert report.calibration.seed == 5


def test_compress_by_the_recipe_that_was_written(
    cli: Cli, pruned: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = pruned
    text = good(
        cli(
            *("compress", BOOKS, "--recipe", folder / "secateur_recipe.yaml"),
            *("--calibration", BOOKS / "calibration.txt", "--num-calibration-samples", 4),
            *("--max-seq-length", 64, "--seed", 5, "--output", tmp_path / "again"),
        )
    )
    assert text.splitlines()[-1] == f"wrote {tmp_path / 'again'}"
    first = load_file(folder / "model.safetensors")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == again.keys()
    for name, value in again.items():
        assert torch.equal(value, first[name]), name
    assert "\x1b" not in text


def test_compress_without_calibration_or_tokenizer(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    options = ["--method", "magnitude", "--sparsity", "0.5", "--output", tmp_path / "out"]
    good(cli("compress", tiny, *options))
    assert prune_of(load_report(tmp_path / "out")).pattern == "unstructured"
    refused(cli("compress", tiny, *options), "is not empty; choose another, or pass overwrite")
    good(cli("compress", tiny, *options, "--overwrite", "--dtype", "bfloat16"))
    assert load_report(tmp_path / "out").model.dtype == "bfloat16"


def test_compress_drops_blocks_before_it_prunes(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("It was a dark and stormy night. " * 100)
    good(
        cli(
            *("compress", BOOKS, "--drop-blocks", 6, "--method", "sparsegpt", "--pattern", "2:4"),
            *("--calibration", words, "--num-calibration-samples", 2, "--max-seq-length", 32),
            *("--output", tmp_path / "out"),
        )
    )
    report = load_report(tmp_path / "out")
    assert [stage.stage for stage in report.stages] == ["drop_blocks", "prune"]
    assert report.size.num_blocks == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2


def test_compress_removes_attention_and_inspect_says_so(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("It was a dark and stormy night. " * 100)
    done = good(
        cli(
            *("compress", BOOKS, "--drop-blocks", 2, "--criterion", "perplexity", "--remeasure"),
            *("--granularity", "attention", "--protect-first", 2, "--protect-last", 4),
            *("--calibration", words, "--num-calibration-samples", 2, "--max-seq-length", 32),
            *("--output", tmp_path / "out"),
        )
    )
    (stage,) = load_report(tmp_path / "out").stages
    assert isinstance(stage, DropRecord)
    assert (stage.dropped, stage.granularity, len(stage.rounds)) == ((2, 3), "attention", 2)
    assert "attention of blocks 2 and 3 removed, by perplexity, measured anew" in " ".join(
        done.split()
    )
    shown = good(cli("inspect", tmp_path / "out"))
    assert "Removed from their blocks: model.layers.2.self_attn" in " ".join(shown.split())
    facts = json.loads(good(cli("inspect", tmp_path / "out", "--json")))
    assert facts["removed"] == ["model.layers.2.self_attn", "model.layers.3.self_attn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to do: --recipe FILE, --method NAME or --drop-blocks N"),
        (
            ["--pattern", "2:4"],
            "--pattern, --sparsity, --budget, --rank and --ignore need --method",
        ),
        (["--sparsity", "0.5", "--drop-blocks", "1"], "need --method"),
        (["--method", "wanda", "--budget", "0.2"], "--strict are for laser, svd"),
        (
            ["--method", "svd", "--pattern", "2:4"],
            "--published and --calibrate-all-experts are for magnitude",
        ),
        (["--method", "svd"], "svd needs either --budget or --rank"),
        (["--method", "svd", "--rank", "4", "--cut", "q:0:0.5"], "--cut is for laser, not for svd"),
        (
            ["--method", "svd", "--rank", "4", "--importance", "loss"],
            "--importance is for svd-whitened, not for svd",
        ),
        (
            ["--method", "svd-whitened", "--rank", "4", "--importance", "size"],
            "--importance: expected one of directions, loss, output, got 'size'",
        ),
        (["--importance", "loss"], "need --method"),
        (["--method", "wanda", "--cut", "q:1:0.5"], "--rank, --cut, --joint, "),
        (["--method", "wanda", "--importance", "loss"], "--in-turn and --strict are for laser"),
        (["--method", "wanda", "--at-once"], "--in-turn and --strict are for laser"),
        (
            ["--method", "svd", "--rank", "4", "--at-once"],
            "--in-turn and --at-once are for svd-whitened, not for svd",
        ),
        (["--at-once"], "need --method"),
        (["--method", "laser"], "name them by --cut TYPE:BLOCK:FRACTION"),
        (["--method", "laser", "--cut", "q:0"], "expected --cut TYPE:BLOCK:FRACTION"),
        (["--method", "laser", "--cut", "q:x:0.5"], "such as mlp_in:7:0.1, got 'q:x:0.5'"),
        (["--method", "laser", "--cut", "q:0:0.5", "--joint"], "are not for laser"),
        (["--method", "laser", "--cut", "w:0:0.5"], "--cut: expected one of"),
        (["--method", "laser", "--cut", "q:0:0.5", "--rank", "3"], "leave out --budget and --rank"),
        (["--ignore", "x"], "need --method"),
        (["--method", "magic", "--pattern", "2:4"], "expected one of magnitude, wanda, sparsegpt"),
        (
            ["--method", "svd-whitend", "--rank", "4"],
            "best-2:4 (zeros) or laser, svd, svd-whitened",
        ),
        (["--method", "magnitude"], "needs --pattern, such as 2:4, or --sparsity"),
        (["--method", "magnitude", "--pattern", "2:5"], "K = 32"),
        (["--method", "wanda", "--pattern", "2:4"], "this recipe needs calibration"),
        (["--drop-blocks", "1"], "this recipe needs calibration"),
        (["--drop-blocks", "0"], "expected --drop-blocks of at least 1, got 0"),
        (["--drop-blocks", "2", *CALIBRATED], "would remove 2 of 2 blocks"),
        (["--criterion", "perplexity"], "--protect-last and --remeasure need --drop-blocks"),
        (["--remeasure"], "--protect-last and --remeasure need --drop-blocks"),
        (
            ["--drop-blocks", "1", "--criterion", "luck"],
            "--criterion: expected one of block_influence",
        ),
        (
            ["--drop-blocks", "1", "--granularity", "head"],
            "--granularity: expected one of block, attention, mlp",
        ),
        (["--drop-blocks", "1", "--protect-first", "2", *CALIBRATED], "protected only 0 may go"),
        (["--drop-blocks", "1", "--protect-last", "-1"], "--protect-last of at least 0"),
        (
            ["--drop-blocks", "1", "--criterion", "angular_distance", "--remeasure"],
            "nothing to --remeasure",
        ),
        (
            ["--drop-blocks", "1", "--granularity", "mlp", "--format", "dense", *CALIBRATED],
            "checkpoint_format dense cannot say",
        ),
        (["--recipe", "x.yaml", "--remeasure"], "give either --recipe or the options"),
        (["--recipe", "no-such.yaml"], "expected a recipe file, but no-such.yaml is not a file"),
        (
            ["--recipe", "x.yaml", "--method", "wanda"],
            "give either --recipe or the options of one stage (--method",
        ),
        (["--recipe", "x.yaml", "--ignore", "wanda"], "not both"),
        (["--method", "magnitude", "--sparsity", "0.5", "--device", "tpu9"], "device tpu9 cannot"),
        (["--method", "magnitude", "--sparsity", "0.5", "--dtype", "int8"], "expected dtype one"),
        (["--method", "magnitude", "--sparsity", "0.5", "--revision", "a"], "is for Hub ids"),
        (["--method", "magnitude", "--sparsity", "0.5", "--text", "no.txt"], "tokenizer"),
        (
            ["--method", "wanda", "--pattern", "2:4", "--calibration", "no-such.txt"],
            "calibration source no-such.txt is neither a file nor a folder",
        ),
    ],
)
def test_compress_refuses(
    cli: Cli, tiny: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    refused(cli("compress", tiny, "--output", tmp_path / "out", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_no_space(cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    options = ["--method", "magnitude", "--pattern", "2:4", "--output", tmp_path / "out"]
    output = cli("compress", tiny, *options)
    refused(output, "expected 32 MiB of free space for", code=5)
    assert "has 5 MiB" in output.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "gate"], "--method: expected one of gates, linears"),
        (["--loss", "distill"], "--loss: expected one of cross_entropy, distillation"),
        (["--data-format", "csv"], "--data-format: expected one of auto"),
        (["--near-cut", "0"], "expected --near-cut of at least 1, got 0"),
        (["--epochs", "0"], "expected --epochs above 0, got 0.0"),
    ],
)
def test_recover_names_its_options(
    cli: Cli, tiny: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    output = cli("recover", tiny, "--output", tmp_path / "out", "--data", "x.txt", *options)
    refused(output, message)
    assert "recipe" not in output.error
    assert "stages" not in output.error


def test_pattern_that_cannot_be_read_is_no_fault_of_a_recipe(cli: Cli, tiny: Path) -> None:
    output = cli("compress", tiny, "--output", "out", "--method", "magnitude", "--pattern", "2-4")
    refused(output, "error: expected --pattern `unstructured` or `keep:group`")


@pytest.mark.parametrize("name", ["a[bold]b", "a[/x]b"])
def test_compress_says_where_it_wrote(cli: Cli, tiny: Path, tmp_path: Path, name: str) -> None:
    options = ["--method", "magnitude", "--pattern", "2:4", "--output", tmp_path / name]
    text = good(cli("compress", tiny, *options))
    assert text.splitlines()[-1] == f"wrote {tmp_path / name}"


def test_inspect_shows_a_compressed_layer_once_a_kind(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compact"
    options = ["--method", "magnitude", "--pattern", "2:4", "--dtype", "bfloat16"]
    good(cli("compress", tiny, "--output", folder, *options, "--format", "compact"))
    table = good(cli("inspect", folder)).partition("Compressed layers, by kind")[2]
    assert table.count("q_proj") == 1
    assert "model.layers.*.self_attn.q_proj" in table.replace("\n", "")
    assert len(json.loads(good(cli("inspect", folder, "--json")))["compressed"]) == 14


@pytest.mark.parametrize("command", ["inspect", "compress"])
def test_models_with_brackets_in_their_names(
    cli: Cli, tiny: Path, tmp_path: Path, command: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "a[bold]b[/x]c"))
    options = ["--method", "magnitude", "--pattern", "2:4", "--output", tmp_path / "out"]
    good(cli(command, folder, *(options if command == "compress" else [])))


# evaluate


def test_evaluate_json_is_all_there_is(cli: Cli, tmp_path: Path) -> None:
    start = tmp_path / "start.txt"
    start.write_text((BOOKS / "evaluation.txt").read_text(encoding="utf-8")[:4_000], "utf-8")
    text = good(cli("evaluate", BOOKS, "--text", start, "--max-seq-length", 128, "--json"))
    assert text.startswith("{")
    assert text.endswith("}\n")
    values = json.loads(text)
    assert set(values) == {"perplexity", "num_tokens", "max_seq_length"}
    assert values["max_seq_length"] == 128
    assert values["num_tokens"] % 127 == 0
    assert 20 < values["perplexity"] < 80


def test_evaluate_two_models_and_fail_if_one_is_worse(cli: Cli, pruned: tuple[Path, str]) -> None:
    folder, _ = pruned
    short = ["--text", BOOKS / "prompts.txt", "--max-seq-length", 64]
    worse = cli("evaluate", folder, "--baseline", BOOKS, *short, "--fail-if-drop", 0.001, "--json")
    assert worse.code == 3
    assert "expected no metric to fall by more than 0.1%" in worse.error
    assert "perplexity: " in worse.error
    values = json.loads(worse.stdout)
    assert set(values) == {"model", "baseline", "drops"}
    (drop,) = values["drops"]
    ratio = values["model"]["perplexity"] / values["baseline"]["perplexity"]
    assert drop["metric"] == "perplexity"
    assert drop["relative"] is True
    assert drop["drop"] == pytest.approx(ratio - 1)
    assert drop["drop"] > 0.001
    table = good(cli("evaluate", folder, "--baseline", BOOKS, *short, "--fail-if-drop", 100))
    assert "worse by" in table
    assert "non-overlapping windows" in table
    good(cli("evaluate", BOOKS, "--baseline", folder, *short, "--fail-if-drop", 0, "--json"))


def test_evaluate_json_has_no_nan(cli: Cli, tmp_path: Path) -> None:
    """Of a single window there is no standard error."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    text = tmp_path / "short.txt"
    text.write_text("A text of one short window.", encoding="utf-8")
    found = good(cli("evaluate", BOOKS, "--text", text, "--baseline", BOOKS, "--json"))
    (drop,) = json.loads(found, parse_constant=refuse)["drops"]
    assert (drop["drop"], drop["standard_error"]) == (0.0, None)


def test_evaluate_tasks(cli: Cli) -> None:
    values = json.loads(
        good(cli("evaluate", BOOKS, "--tasks", BOOKS / "cloze.jsonl", "--limit", 3, "--json"))
    )
    assert list(values) == ["tasks"]
    (task,) = values["tasks"].values()
    assert task["num_items"] == 3


def test_evaluate_tells_tasks_of_one_name_apart(cli: Cli, tmp_path: Path) -> None:
    tasks: list[object] = []
    for folder, name, number in (("a", "cloze", 2), ("b", "choices", 3)):
        lines = (BOOKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        file = tmp_path / folder / "test.jsonl"
        file.parent.mkdir()
        file.write_text("\n".join(lines[:number]), encoding="utf-8")
        tasks += ["--tasks", file]
    values = json.loads(good(cli("evaluate", BOOKS, *tasks, "--json")))["tasks"]
    assert {name: task["num_items"] for name, task in values.items()} == {"a/test": 2, "b/test": 3}


def test_evaluate_tells_lm_eval_how_to_run_its_tasks(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run(_: Any, __: Any, *how: Any) -> tuple[TaskResult, ...]:
        asked.append(how)
        return (TaskResult("own", {"acc": Estimate(0.5, 0.1)}, 4),)

    monkeypatch.setattr("secateur.evaluate.suite.run_lm_eval", run)
    monkeypatch.setattr("secateur.evaluate.suite.check_lm_eval_tasks", lambda *_: None)
    options = ["--num-fewshot", 2, "--include-path", tmp_path, "--limit", 4, "--seed", 5]
    good(cli("evaluate", BOOKS, "--tasks", "own", *options, "--json"))
    good(cli("evaluate", BOOKS, "--tasks", "own"))
    assert asked == [(["own"], 8, 4, 2, tmp_path, 5), (["own"], 8, None, None, None, 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to measure: --text FILE or --tasks FILE"),
        (["--tasks", "./a.jsonl", "--num-fewshot", 2], "name of an lm-eval task, got ./a.jsonl"),
        (["--text", BOOKS / "prompts.txt", "--include-path", "."], "lm-eval task, got no tasks"),
        (["--tasks", "own", "--num-fewshot", -1], "expected --num-fewshot of 0 or more, got -1"),
        (["--tasks", "own", "--include-path", "no-such"], "of a folder, got no-such"),
        (["--text", "no-such.txt"], "expected a UTF-8 text file, but no-such.txt"),
        (["--text", BOOKS / "prompts.txt", "--fail-if-drop", 1], "--baseline MODEL, which is"),
        (["--text", BOOKS / "prompts.txt", "--max-seq-length", 1025], "at most 1024 tokens"),
        (["--text", BOOKS / "prompts.txt", "--batch-size", 0], "batch size of at least 1"),
        (["--text", BOOKS / "prompts.txt", "--device", "tpu9"], "device tpu9 cannot be used"),
        (["--tasks", "./no-such.jsonl"], "no-such.jsonl"),
        (["--text", BOOKS / "prompts.txt", "--seed", 2**64], "expected 0 <= seed < 2^32, got"),
    ],
)
def test_evaluate_refuses(cli: Cli, options: list[object], message: str) -> None:
    refused(cli("evaluate", BOOKS, *options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "no-such.txt"], "expected a UTF-8 text file, but no-such.txt"),
        (["--tasks", "./no-such.jsonl"], "no-such.jsonl"),
        (["--tasks", BOOKS / "prompts.txt", "--tasks", "own"], "prompts.txt"),
        (["--tasks", "own"], "own: no such file here"),
        (["--text", BOOKS / "prompts.txt", "--baseline", "no/such/model"], "got no/such/model"),
        (["--text", BOOKS / "prompts.txt", "--max-seq-length", 1], "at least 2 tokens"),
        (["--text", BOOKS / "prompts.txt", "--limit", 3], "--limit: expected --tasks"),
        (["--tasks", BOOKS / "cloze.jsonl", "--max-seq-length", 9], "expected --text, whose"),
        (["--tasks", "own", "--limit", 0], "expected a limit of at least 1 item, but got 0"),
        (
            ["--text", BOOKS / "prompts.txt", "--baseline", BOOKS, "--fail-if-drop", -1],
            "expected a largest drop of 0 or more, but got -1.0",
        ),
        (["--text", BOOKS / "prompts.txt", "--batch-size", 0], "batch size of at least 1"),
    ],
)
def test_evaluate_refuses_before_it_loads(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: list[object], message: str
) -> None:
    """What cannot be read must not cost the time to measure what can."""
    monkeypatch.setattr("secateur.cli.loading.load_with_tokenizer", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused(cli("evaluate", BOOKS, *options), message)


def test_evaluate_needs_a_tokenizer(cli: Cli, tiny: Path) -> None:
    refused(cli("evaluate", tiny, "--text", BOOKS / "prompts.txt"), "put the files of the original")


# verify


def test_verify(cli: Cli, pruned: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = pruned
    text = good(cli("verify", folder))
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("ok")] == [
        ["ok", "manifest:"],
        ["ok", "reload:"],
        ["ok", "pattern:"],
        ["ok", "logits:"],
    ]
    spoilt = Path(shutil.copytree(folder, tmp_path / "spoilt"))
    content = bytearray((spoilt / "model.safetensors").read_bytes())
    content[-1] ^= 0x40
    (spoilt / "model.safetensors").write_bytes(content)
    output = cli("verify", spoilt)
    assert output.code == 4
    assert "FAILED manifest: model.safetensors has other content" in output.stdout
    assert output.error.startswith("error: ")
    assert "is not what was written: manifest" in output.error


def test_verify_something_else(cli: Cli) -> None:
    refused(cli("verify", BOOKS), "expected secateur_report.json, but")
    refused(cli("verify", "./no-such"), "expected secateur_report.json, but")


# report


def test_report(cli: Cli, pruned: tuple[Path, str], tmp_path: Path) -> None:
    folder, stdout = pruned
    assert good(cli("report", folder)).splitlines() == stdout.splitlines()[:-1]
    text = good(cli("report", folder, "--json"))
    assert text == (folder / "secateur_report.json").read_text()
    page = tmp_path / "new" / "page.html"
    assert good(cli("report", folder / "secateur_report.json", "--html", page)).splitlines()[
        -1
    ] == (f"wrote {page}")
    html = page.read_text(encoding="utf-8")
    assert html.lower().lstrip().startswith("<!doctype html>")
    assert "mlp.down_proj" in html
    for outside in ('src="http', "src='http", 'href="http', "@import", "url(http"):
        assert outside not in html
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_report_that_cannot_be_written(cli: Cli, pruned: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(cli("report", pruned[0], "--html", tmp_path / "folder"), "cannot be written")
    refused(cli("report", pruned[0], "--html", "."), ". cannot be written: it is a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_report_below_a_file(cli: Cli, pruned: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(cli("report", pruned[0], "--html", tmp_path / "file" / "x.html"), "cannot be written")


# generate


def test_generate_is_deterministic(cli: Cli) -> None:
    prompt = "It was a dark and stormy night"
    arguments = ["generate", BOOKS, "--prompt", prompt, "--max-new-tokens", 6]
    first = good(cli(*arguments))
    assert first.startswith(prompt)
    assert len(first) > len(prompt) + 6
    assert good(cli(*arguments)) == first
    assert good(cli(*arguments, "--seed", 9)) == first
    sampled = [good(cli(*arguments, "--temperature", 1.5, "--seed", seed)) for seed in (1, 2, 1)]
    assert sampled[0] == sampled[2]
    assert sampled[0] != sampled[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "expected a prompt to continue"),
        (["--prompt", "a", "--max-new-tokens", 0], "at least 1 new token"),
        (["--prompt", "a", "--max-new-tokens", 5000], "context"),
        (["--prompt", "a", "--temperature", -1], "temperature of 0 or more"),
        (["--prompt", "a", "--top-p", 0], "top_p above 0"),
    ],
)
def test_generate_refuses(cli: Cli, options: list[object], message: str) -> None:
    refused(cli("generate", BOOKS, *options), message)


# doctor, demo


def test_doctor(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    values = json.loads(good(cli("doctor", "--json")))
    assert values["secateur"] == __version__
    assert values["torch"] == torch.__version__
    assert {"python", "transformers", "processor", "cores", "gpu", "nvcc"} <= set(values)
    assert all(isinstance(value, str) for value in values.values())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = json.loads(good(cli("doctor", "--json")))
    assert offline["offline"] == "yes: the Hub is not asked"
    text = good(cli("doctor"))
    for name in values:
        assert name in text


@pytest.mark.parametrize(
    ("is_slow", "said"),
    [(True, "many times slower than float32"), (False, "supported")],
)
def test_doctor_tells_of_16_bits_on_the_cpu(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, is_slow: bool, said: str
) -> None:
    monkeypatch.setattr("secateur.cli.doctor.has_slow_products", lambda *_: is_slow)
    values = json.loads(good(cli("doctor", "--json")))
    for dtype in ("bfloat16", "float16"):
        assert values[f"{dtype} on the CPU"].startswith(said)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (LibraryStatus(True, architectures=("sm_80", "sm_90a")), "for sm_80, sm_90a"),
        (LibraryStatus(False, reason="it is not built"), "it is not built"),
    ],
)
def test_doctor_tells_of_the_compiled_library(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, status: LibraryStatus, said: str
) -> None:
    monkeypatch.setattr("secateur.cli.doctor.library_status", lambda: status)
    assert json.loads(good(cli("doctor", "--json")))["compiled library"] == said


def test_doctor_names_measured_times(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured() -> str:
        return str(json.loads(good(cli("doctor", "--json")))["measured times"])

    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    assert measured() == "none on this machine (secateur tune makes them)"
    path = tmp_path / "times-cpu.json"
    Times("cpu", (0, 0), {"secateur": __version__}).save(path)
    assert measured() == f"0 entries for cpu in {path}"
    Times("cpu", (0, 0), {"secateur": "0.0.1"}).save(path)
    assert measured() == (
        f"passed over: {path} is by secateur 0.0.1, this is {__version__}; run secateur tune again"
    )


def test_demo_without_its_example(cli: Cli, tmp_path: Path) -> None:
    refused(cli("demo", "--example", tmp_path / "none", "--output", tmp_path / "demo"), "none")
    assert list(tmp_path.iterdir()) == []
