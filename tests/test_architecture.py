"""The import rules of docs/map.md, read off the code."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"secateur": ROOT / "src" / "secateur", "secateur_kernels": ROOT / "kernels"}
SOURCES |= {"secateur_command": ROOT / "src" / "secateur_command"}

FOUNDATION = {"errors", "plain", "settings", "clock", "progress", "recipe", "yaml_text"}
ALGORITHMS = {"score", "mask", "update", "depth", "lowrank", "reconstruct", "inherit"}

# Part of `secateur` -> the parts that it may import beside itself.
MAY_IMPORT = {
    "errors": set(),
    "clock": {"progress"},
    "plain": {"errors"},
    "new_folder": set(),
    "seeds": {"errors"},
    "settings": {"errors"},
    "spans": set(),
    "progress": {"settings"},
    "parallel": {"errors", "settings"},
    "yaml_text": {"errors"},
    "recipe": {"errors", "plain", "seeds", "yaml_text"},
    "models": {"errors", "modules"},
    "integrations": {"errors", "models", "modules", "plain"},
    "score": set(),
    "mask": set(),
    "update": set(),
    "depth": {"errors", "models"},
    "lowrank": {"errors"},
    "reconstruct": {"errors", "models", "parallel", "progress", "spans"},
    "modules": {"errors"},
    "runtime": {"errors", "integrations", "models", "modules", "report"},
    "inherit": {"depth", "errors", "models"},
    "texts": {"errors"},
    "calibration": {"errors", "models", "parallel", "seeds", "spans", "texts"},
    "report": {"errors", "plain", "recipe"},
    "evaluate": {"errors", "models", "progress", "report", "seeds", "texts"},
    "training": {
        "errors",
        "evaluate",
        "models",
        "new_folder",
        "plain",
        "progress",
        "recipe",
        "report",
        "settings",
        "texts",
    },
    "checkpoint": {
        "errors",
        "integrations",
        "models",
        "modules",
        "new_folder",
        "recipe",
        "report",
        "settings",
    },
    "stages": {"calibration", "errors", "models", "modules", "progress", "recipe", "report"}
    | {"parallel", "plain", "settings", "training"}
    | ALGORITHMS,
    "ancestry": {"checkpoint", "models", "report"},
    "prepare_training": {
        "ancestry",
        "checkpoint",
        "clock",
        "errors",
        "models",
        "recipe",
        "report",
        "stages",
    }
    | {"settings", "training"},
    "run_stages": {
        "ancestry",
        "calibration",
        "checkpoint",
        "clock",
        "models",
        "prepare_training",
        "progress",
    }
    | {"parallel", "recipe", "report", "stages"},
    "prepare": {"calibration", "checkpoint", "depth", "errors", "evaluate", "models", "parallel"}
    | {"recipe", "stages"},
    "run_report": {"calibration", "checkpoint", "clock", "errors", "evaluate", "models"}
    | {"recipe", "report"},
    "search": {"errors", "evaluate", "lowrank", "models", "plain", "progress", "recipe", "report"}
    | {"seeds"},
    "throughput": {"checkpoint", "depth", "engine", "errors", "mask", "models", "modules"}
    | {"progress", "report", "runtime"},
    "serve": {"checkpoint", "engine", "errors", "models", "report", "runtime"},
    "lazy_attention": {"calibration", "depth", "models", "progress", "report"},
    "compress": FOUNDATION
    | {"ancestry", "calibration", "checkpoint", "evaluate", "models", "prepare"}
    | {"prepare_training", "report", "run_report", "run_stages"},
    "streaming": {"calibration", "checkpoint", "errors", "models", "plain", "recipe", "report"}
    | {"integrations"},
    "prepare_streaming": {"calibration", "checkpoint", "errors", "models", "prepare"}
    | {"recipe", "settings", "stages", "streaming"},
    "run_streamed": {"calibration", "clock", "models", "prepare_streaming", "recipe", "report"}
    | {"stages", "streaming"},
    "compress_streaming": FOUNDATION
    | {"calibration", "checkpoint", "integrations", "models", "prepare"}
    | {"prepare_streaming", "report", "run_report", "run_streamed", "streaming"},
    "engine": {"errors", "models", "modules"},
    "demo": FOUNDATION | {"checkpoint", "compress", "evaluate", "report", "run_report"},
    "plan": ALGORITHMS
    | {"calibration", "checkpoint", "compress", "errors", "evaluate", "models", "modules", "plain"}
    | {"progress", "recipe", "search", "spans", "stages"},
    "convert": {"ancestry", "checkpoint", "clock", "errors", "models", "prepare"}
    | {"progress", "recipe", "report", "run_report", "run_stages"},
    "make_dense": {"checkpoint", "clock", "errors", "models", "progress", "recipe", "report"}
    | {"run_report"},
    "cli": FOUNDATION
    | {
        "checkpoint",
        "compress",
        "convert",
        "compress_streaming",
        "demo",
        "evaluate",
        "lazy_attention",
        "make_dense",
        "models",
        "plan",
        "prepare",
        "prepare_streaming",
        "run_report",
    }
    | {"plan", "report", "search", "streaming", "serve", "throughput"},
    "__init__": {"compress", "compress_streaming", "engine", "errors", "recipe", "runtime"},
    "__main__": {"cli"},
}

# Module -> the only files that may import it.
ONLY_IN = {
    "transformers": {"checkpoint/load.py", "integrations/transformers_quantizer.py"}
    | {"throughput/random_model.py"}
    | {f"streaming/{name}.py" for name in ("skeleton", "source", "shards")}
    | {f"training/{name}.py" for name in ("trainer", "callbacks", "checkpoints", "run")}
    | {"engine/attention.py", "engine/slot_cache.py", "depth/rebuild.py"},
    "peft": {"training/adapters.py"},
    "huggingface_hub": {"checkpoint/load.py"},
    "datasets": {"texts/dataset_rows.py"},
    "lm_eval": {"evaluate/lm_eval_tasks.py"},
    "matplotlib": {"report/plots.py", "report/search_plots.py", "report/attention_plots.py"}
    | {"report/depth_plots.py", "report/training_plots.py", "report/throughput_plots.py"},
    "jinja2": {"report/page.py", "report/search_page.py", "report/attention_page.py"}
    | {"report/throughput_page.py", "report/template.py"},
    "fastapi": {"serve/app.py", "serve/server.py"},
    "prometheus_client": {"serve/metrics.py", "serve/server.py"},
    "uvicorn": {"serve/server.py"},
    "scipy": {"plan/solve.py"},
    "typer": {"cli/", "secateur_command/"},
    "vllm": {"integrations/vllm/"},
}

KERNELS_MAY_IMPORT = {"torch", "triton", "numpy", "safetensors", "secateur_kernels"}


@cache
def files() -> list[Path]:
    return sorted(path for folder in SOURCES.values() for path in folder.rglob("*.py"))


@cache
def imports(tree: ast.AST) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.append(node.module or "")
    return tuple(names)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    inner = path.relative_to(SOURCES["secateur"]).parts[0]
    return inner.removesuffix(".py")


def front_end_files() -> list[Path]:
    return [path for path in files() if SOURCES["secateur"] in path.parents]


@pytest.mark.parametrize("path", front_end_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_parts_import_only_what_the_map_allows(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is not on the map"
    for name in imports(parsed(path)):
        package, _, rest = name.partition(".")
        if package != "secateur" or not rest:
            continue
        other = rest.split(".")[0]
        assert other == part or other in MAY_IMPORT[part], f"{part} must not import {name}"


def test_the_kernel_package_knows_nothing_of_the_front_end() -> None:
    standard = set(sys.stdlib_module_names)
    for path in files():
        if SOURCES["secateur_kernels"] not in path.parents:
            continue
        for name in imports(parsed(path)):
            root = name.split(".")[0]
            assert root in KERNELS_MAY_IMPORT | standard, f"{path}: {name}"


def test_the_program_knows_only_itself_and_typer() -> None:
    standard = set(sys.stdlib_module_names)
    for path in files():
        if SOURCES["secateur_command"] in path.parents:
            roots = {name.split(".")[0] for name in imports(parsed(path))}
            assert roots <= standard | {"typer", "secateur_command"}, path


def test_algorithms_need_torch_and_numpy_only() -> None:
    standard = set(sys.stdlib_module_names)
    for path in front_end_files():
        if part_of(path) in {"score", "mask", "update", "lowrank"}:
            roots = {name.split(".")[0] for name in imports(parsed(path))}
            assert roots <= standard | {"numpy", "torch", "secateur", "secateur_kernels"}, path


@pytest.mark.parametrize("module", sorted(ONLY_IN))
def test_outside_libraries_come_in_by_one_door(module: str) -> None:
    for path in files():
        name = str(path.relative_to(ROOT))
        if any(place in name for place in ONLY_IN[module]):
            continue
        roots = {imported.split(".")[0] for imported in imports(parsed(path))}
        assert module not in roots, f"{name} imports {module}"


def test_no_import_inside_functions_but_for_optional_libraries() -> None:
    # Triton is a base requirement on Linux only.
    optional = {"datasets", "lm_eval", "peft", "scipy", "triton"}
    optional |= {"fastapi", "prometheus_client", "starlette", "uvicorn"}
    for path in files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                roots = {name.split(".")[0] for name in imports(node)}
                assert roots <= optional, f"{path}, {node.name}: {roots - optional}"


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in front_end_files():
        module = ".".join(("secateur", *path.relative_to(SOURCES["secateur"]).parts))
        module = module.removesuffix(".py").removesuffix(".__init__")
        graph[module] = {name for name in imports(parsed(path)) if name.startswith("secateur.")}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in visiting, " -> ".join([*visiting, module])
        if module in done or module not in graph:
            return
        visiting.append(module)
        for other in graph[module]:
            visit(other)
        visiting.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_the_environment_is_read_in_one_place() -> None:
    for path in files():
        if path.name == "settings.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bos\.(environ|getenv)|import (environ|getenv)", text), path


def test_names_say_something() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in files() if path.stem in vague or path.parent.name in vague]


def test_every_part_stands_on_the_map() -> None:
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    for path in files():
        if path.name in {"__init__.py", "__main__.py"}:
            continue
        inner = "/".join(path.relative_to(ROOT).parts[1:]).removeprefix("secateur/")
        assert f"`{inner}`" in text, f"docs/map.md does not mention {inner}"


def test_files_stay_small() -> None:
    long = {str(p): n for p in files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long
