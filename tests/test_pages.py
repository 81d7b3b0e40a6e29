"""README, guides and notes: links lead somewhere, and what a reader would type is accepted."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import secateur
from secateur.cli.app import app
from secateur.recipe.recipe import recipe_from_text

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "csrc" / "README.md", ROOT / "bench" / "NOTES.md"]
SHELL = {"", "bash"}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every fenced block, and of every indented one, as a shell's."""
    text = page.read_text(encoding="utf-8")
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield language, body
    for body in re.findall(r"(?:^    .*\n)+", without_code(text), re.M):
        yield "", body


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code(language: str) -> list[tuple[str, str]]:
    found = [(page.name, body) for page in PAGES for name, body in blocks(page) if name == language]
    assert found
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command line that stands in a block."""
    for page in PAGES:
        for language, body in blocks(page):
            if language in SHELL:
                for line in body.replace("\\\n", " ").splitlines():
                    if re.match(r"\s*(secateur|torchrun|python3?|make|pip) ", line):
                        yield page.name, shlex.split(line, comments=True)


def secateur_commands() -> list[tuple[str, list[str]]]:
    found = []
    for page, words in commands():
        if words[0] == "secateur":
            found.append((page, words[1:]))
        elif "secateur" in words:
            found.append((page, words[words.index("secateur") + 1 :]))
    return found


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of `page`."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(plain if plain not in found else f"{plain}-1")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_guide() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    for guide in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{guide.name})" in text


def parse(words: list[str]) -> None:
    """What a command line does before its command runs: options, their types, what is required."""
    name, command, rest = the_command(words)
    with command.make_context(name, rest):
        pass


def the_command(words: list[str]) -> tuple[str, TyperCommand, list[str]]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    with group.make_context("secateur", list(words)) as context:
        name, command, rest = group.resolve_command(context, list(words))
    assert isinstance(command, TyperCommand)
    return str(name), command, rest


@pytest.mark.parametrize(("page", "words"), secateur_commands(), ids=lambda value: value[0])
def test_commands_are_accepted(page: str, words: list[str]) -> None:
    parse(words)


def test_a_command_that_is_wrong_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such command 'compres'"):
        parse(["compres", "a", "--output", "b"])
    with pytest.raises(Exception, match="No such option: --patern"):
        parse(["compress", "a", "--output", "b", "--patern", "2:4"])
    with pytest.raises(Exception, match="Missing parameter: output"):
        parse(["compress", "a"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_named_in_a_sentence_exist(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for name, rest in re.findall(r"`secateur\s+([a-z]+)([^`]*)`", text):
        options = {option for p in the_command([name])[1].params for option in p.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= options | {"--help"}, name + rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python3?\s+-m\s+(bench\.\w+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def test_targets_of_make_exist() -> None:
    lines = re.findall(r"^([a-z0-9 -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    targets = " ".join(lines).split()
    named = [(page, words[1]) for page, words in commands() if words[0] == "make"]
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        named += [(path.name, target) for target in re.findall(r"`make\s([a-z0-9-]+)", text)]
    assert named
    for page, target in named:
        assert target in targets, f"{page}: make {target}"


def test_files_of_commands_exist() -> None:
    for page, words in commands():
        for word in words:
            if word.startswith(("examples/", "tests/", "csrc/")):
                assert (ROOT / word).exists(), f"{page}: {word}"


@pytest.mark.parametrize(("page", "body"), code("yaml"))
def test_recipes_are_valid_and_those_with_a_path_are_that_file(page: str, body: str) -> None:
    recipe_from_text(body)
    if path := re.match(r"# (examples/\S+)\n", body):
        assert body[path.end() :] == (ROOT / path[1]).read_text(encoding="utf-8"), page


@pytest.mark.parametrize(("page", "body"), code("python"))
def test_imports_of_examples_exist(page: str, body: str) -> None:
    for node in ast.walk(ast.parse(body, page)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "secateur":
                assert hasattr(secateur, node.attr), f"secateur.{node.attr}"
