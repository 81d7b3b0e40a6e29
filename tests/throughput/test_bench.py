"""The whole benchmark on tiny models, by function and by command: what runs, not how fast."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from families import tiny_model
from typer.testing import CliRunner

from secateur.checkpoint.load import silence_transformers
from secateur.cli.bench import bench_command
from secateur.engine import Engine
from secateur.errors import SecateurError
from secateur.progress import SilentProgress
from secateur.report.throughput_record import ThroughputRecord, throughput_from_text
from secateur.throughput.candidates import Candidate, random_candidates
from secateur.throughput.runners import EngineRunner, Prompts, TransformersRunner
from secateur.throughput.suite import ThroughputOptions, random_prompts, run_throughput
from secateur.throughput.turn import Turn, Workload

APP = typer.Typer()
APP.command(name="bench")(bench_command)
CPU = torch.device("cpu")
FORMS = ("dense", "2:4", "low-rank", "depth", "2:4+low-rank")
WORKLOADS = (Workload(1, 5, 4), Workload(2, 7, 4))


@pytest.fixture(scope="module")
def measured() -> ThroughputRecord:
    candidates = random_candidates("tiny", FORMS, "auto", CPU)
    options = ThroughputOptions(workloads=WORKLOADS, rounds=2, against_transformers=True)
    *_, record = run_throughput(candidates, options, SilentProgress())
    return record


def test_every_model_runs_every_workload_and_transformers_the_baselines(
    measured: ThroughputRecord,
) -> None:
    seen = [(one.model, one.runner, one.batch_size) for one in measured.measurements]
    engine = [(form, "engine", rows) for rows in (1, 2) for form in FORMS]
    other = [
        ("dense", f"transformers {kind}", rows) for rows in (1, 2) for kind in ("eager", "static")
    ]
    assert sorted(seen) == sorted([*engine, *other])
    for one in measured.measurements:
        assert (one.rounds, one.new_tokens, one.peak_memory_bytes) == (2, 4, None)
        assert one.time_per_output_token is not None
        assert 0 < one.time_per_output_token.p50 <= one.time_per_output_token.p99


def test_models_are_described_in_the_form_that_they_run_in(measured: ThroughputRecord) -> None:
    forms = {model.name: model.form for model in measured.models}
    assert forms == {form: form for form in FORMS}
    references = {model.name for model in measured.models if model.is_reference}
    assert references == {"2:4", "2:4+low-rank"}
    blocks = {model.name: model.num_blocks for model in measured.models}
    assert blocks["depth"] == 3
    assert blocks["dense"] == 4
    assert measured.model("2:4").weight_bytes < measured.model("dense").weight_bytes
    assert measured.dtype == "bfloat16"
    assert measured.copy_bandwidth > 0


@pytest.mark.parametrize("static", [False, True])
def test_both_runners_generate_the_same_number_of_tokens_despite_end_tokens(static: bool) -> None:
    model = tiny_model("llama")
    prompts = [[3, 4, 5], [6, 7, 8]]
    with torch.no_grad():
        likeliest = model(torch.tensor(prompts)).logits[:, -1].argmax(-1).tolist()
    # Both texts would end at once.
    model.generation_config.eos_token_id = likeliest
    turn = TransformersRunner(model, static).run(prompts, 4)
    assert [len(times) for times in turn.arrivals] == [4, 4]
    assert all(list(times) == sorted(times) for times in turn.arrivals)
    assert model.generation_config.eos_token_id == likeliest
    assert model.config.eos_token_id == 2
    engine = Engine(model, max_batch_size=2, max_length=16)
    turn = EngineRunner(engine, model).run(prompts, 4)
    assert [len(times) for times in turn.arrivals] == [4, 4]


def test_prompts_are_tokens_that_all_models_know() -> None:
    models = [tiny_model("llama"), random_candidates("tiny", ["dense"], "auto", CPU)[0].model]
    prompts = random_prompts(models, Workload(3, 50, 1))
    assert [len(prompt) for prompt in prompts] == [50] * 3
    assert max(max(prompt) for prompt in prompts) < 128
    assert prompts == random_prompts(models, Workload(3, 50, 1))
    assert prompts[0] != prompts[1]


def test_a_model_without_embeddings_or_generate_is_refused() -> None:
    with pytest.raises(SecateurError, match="expected a model with input embeddings, got Linear"):
        random_prompts([torch.nn.Linear(2, 2)], WORKLOADS[0])
    with pytest.raises(SecateurError, match="Linear has no generate method"):
        TransformersRunner(torch.nn.Linear(2, 2), False)


def test_wrong_plans_are_refused() -> None:
    with pytest.raises(SecateurError, match="expected a workload and a round at least, got 0"):
        ThroughputOptions(workloads=())
    options = ThroughputOptions(workloads=WORKLOADS, baseline="x")
    with pytest.raises(SecateurError, match="expected --baseline one of a, got 'x'"):
        next(run_throughput([Candidate("a", "a", tiny_model("llama"))], options, SilentProgress()))
    with pytest.raises(SecateurError, match="expected a model to measure, got none"):
        next(run_throughput([], options, SilentProgress()))
    with pytest.raises(SecateurError, match="expected different forms, at least one, got depth"):
        random_candidates("tiny", ["depth", "depth"], "auto", CPU)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(APP, list(map(str, arguments)))
    if isinstance(result.exception, SecateurError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


SMALL = ("--batch-sizes", 1, "--prompt-lengths", "4,6", "--new-tokens", 2, "--rounds", 1)


def test_the_command_measures_folders_and_writes_lines_and_page(tmp_path: Path) -> None:
    silence_transformers()
    for name in ("a", "b"):
        tiny_model("llama").save_pretrained(tmp_path / name / "model")
    lines, page = tmp_path / "out.jsonl", tmp_path / "out.html"
    folders = [tmp_path / name / "model" for name in ("a", "b")]
    noted = ("--note", "Beside other work.", "--baseline", "b/model")
    shown = invoke(*folders, *SMALL, *noted, "--json", lines, "--page", page)
    (record,) = throughput_from_text(lines.read_text(encoding="utf-8"))
    assert [model.name for model in record.models] == ["a/model", "b/model"]
    assert record.baseline == "b/model"
    assert record.notes == ("Beside other work.",)
    assert "Beside other work." in shown
    for heading in ("Model", "Batch", "Prompt", "TTFT p50/p99", "TPOT p50/p99", "Decode"):
        assert heading in shown
    assert f"wrote {lines}\nwrote {page}\n" in shown
    assert "Throughput beside b/model" in page.read_text(encoding="utf-8")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises `KeyboardInterrupt`, also where the suite runs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _sent(number: int) -> BaseException | None:
    os.kill(os.getpid(), number)
    return None


however_it_ends = pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: SecateurError("out of luck"), 1),
        (lambda: _sent(signal.SIGINT), 130),
        (lambda: _sent(signal.SIGTERM), 143),
    ],
)


@pytest.mark.usefixtures("interruptible")
@however_it_ends
def test_workloads_that_finished_are_kept_however_the_command_ends(
    end: Callable[[], BaseException | None],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = EngineRunner.run
    lines, page = tmp_path / "out.jsonl", tmp_path / "out.html"
    kept: list[str] = []

    def ends_in_the_second_workload(self: EngineRunner, prompts: Prompts, new: int) -> Turn:
        if len(prompts[0]) == 6:
            kept.extend(path.read_text(encoding="utf-8") for path in (lines, page))
            if (error := end()) is not None:
                raise error
        return run(self, prompts, new)

    monkeypatch.setattr(EngineRunner, "run", ends_in_the_second_workload)
    before = signal.getsignal(signal.SIGTERM)
    places = ("--json", lines, "--page", page)
    arguments = list(map(str, ("--shape", "tiny", "--forms", "dense", *SMALL, *places)))
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == code
    assert signal.getsignal(signal.SIGTERM) is before
    assert kept == [path.read_text(encoding="utf-8") for path in (lines, page)]
    (record,) = throughput_from_text(kept[0])
    assert [one.prompt_length for one in record.measurements] == [4]
    said = f"stopped after 1 of 2 workloads\nwrote {lines}\nwrote {page}\n"
    assert said in result.stdout


@pytest.mark.usefixtures("interruptible")
@however_it_ends
def test_a_command_that_ends_in_its_first_workload_says_that_nothing_is_kept(
    end: Callable[[], BaseException | None],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = EngineRunner.run

    def ends(self: EngineRunner, prompts: Prompts, new: int) -> Turn:
        if (error := end()) is not None:
            raise error
        return run(self, prompts, new)

    monkeypatch.setattr(EngineRunner, "run", ends)
    places = ("--json", tmp_path / "out.jsonl", "--page", tmp_path / "out.html")
    arguments = list(map(str, ("--shape", "tiny", "--forms", "dense", *SMALL, *places)))
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == code
    assert result.stdout == "stopped before a workload had ended: nothing was written\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--baseline", "x"), "expected --baseline one of dense, got 'x'"),
        (("--attention", "flex"), "flex attention needs compiled steps on a GPU"),
    ],
)
def test_a_command_that_cannot_begin_says_why_and_no_more(
    option: tuple[str, str], message: str
) -> None:
    arguments = list(map(str, ("--shape", "tiny", "--forms", "dense", *SMALL, *option)))
    result = CliRunner().invoke(APP, arguments)
    assert message in str(result.exception)
    assert not result.stdout


def test_figures_are_told_where_the_page_cannot_be_written(tmp_path: Path) -> None:
    lines, page = tmp_path / "out.jsonl", tmp_path / "out.html"
    page.with_name("out.html.partial").mkdir()
    places = ("--json", lines, "--page", page)
    arguments = list(map(str, ("--shape", "tiny", "--forms", "dense", *SMALL, *places)))
    result = CliRunner().invoke(APP, arguments)
    assert f"{page} cannot be written" in str(result.exception)
    assert "TTFT p50/p99" in result.stdout
    assert f"stopped after 1 of 2 workloads\nwrote {lines}\n" in result.stdout
    assert f"wrote {page}" not in result.stdout
    assert "nothing was written" not in result.stdout


def test_the_command_makes_models_of_a_shape() -> None:
    shown = invoke("--shape", "tiny", "--forms", "dense,2:4", *SMALL)
    assert "reference, no speed-up claimed" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to measure: models, or --shape NAME"),
        (("m", "--shape", "tiny"), "say what to measure: models, or --shape NAME"),
        (("m", "--depth-kept", "0.5"), "--depth-kept are for the forms of a --shape"),
        (("m", "--forms", "dense"), "--shape NAME with or without --forms"),
        (("m", "m"), "expected different models, got m, m"),
        (("--shape", "x"), "expected --shape one of"),
        (("--shape", "tiny", "--batch-sizes", "1,0"), "expected --batch-sizes as numbers"),
        (("--shape", "tiny", "--prompt-lengths", "a"), "expected --prompt-lengths as numbers"),
        (("--shape", "tiny", "--new-tokens", "0"), "expected a workload of at least 1"),
        (
            ("--shape", "tiny", "--attention", "flex"),
            "flex attention needs compiled steps on a GPU",
        ),
        (("--shape", "tiny", "--against", "x"), "expected --against transformers, got 'x'"),
        (("--shape", "tiny", "--dtype", "int8"), "expected dtype auto, bfloat16"),
        (("--shape", "tiny", "--json", "/nowhere/x"), "expected a file in a folder that exists"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SecateurError) as caught:
        invoke(*arguments)
    assert message in str(caught.value)
