"""Three disjoint texts for a model: to calibrate on, to choose settings on, to report on.

    python -m bench.texts --text FILE [--calibration FILE] --output FOLDER

A text of many documents is cut in two between documents: the first half, by characters, is to
choose on, the rest to report on. A document of one part, or of the calibration text, that is found
in a later part is left out there, and said.
"""

from pathlib import Path
from typing import Annotated

import typer

END_OF_DOCUMENT = "<|endoftext|>"


def split_documents(text: str) -> tuple[list[str], list[str]]:
    """(to choose on, to report on): documents in order, the one that lies on the middle in neither.

    What was chosen on "the first half" of a text by characters may have seen part of that one.
    """
    documents = text.split(END_OF_DOCUMENT)
    choosing, reporting, at, middle = [], [], 0, len(text) / 2
    for document in documents:
        end = at + len(document)
        if end <= middle:
            choosing.append(document)
        elif at > middle:
            reporting.append(document)
        at = end + len(END_OF_DOCUMENT)
    return choosing, reporting


def without(documents: list[str], earlier: list[str]) -> list[str]:
    """The documents that are not word for word among, or part of, the earlier ones."""
    known = "\n".join(_words(document) for document in earlier)
    return [document for document in documents if (w := _words(document)) and w not in known]


def _words(document: str) -> str:
    return " ".join(document.split())


def main(
    text: Annotated[Path, typer.Option(help="Documents, <|endoftext|> between them.")],
    output: Annotated[Path, typer.Option(help="Gets choose.txt and report.txt.")],
    calibration: Annotated[Path, typer.Option(help="Text that is calibrated on.")] = Path(
        "examples/books-8m/calibration.txt"
    ),
) -> None:
    choosing, reporting = split_documents(text.read_text(encoding="utf-8"))
    calibrating = [calibration.read_text(encoding="utf-8")]
    parts = {
        "choose.txt": (choosing, without(choosing, calibrating)),
        "report.txt": (reporting, without(reporting, calibrating + choosing)),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, (documents, left) in parts.items():
        (output / name).write_text(END_OF_DOCUMENT.join(left), encoding="utf-8")
        typer.echo(f"{name}: {len(left)} documents, {len(documents) - len(left)} left out")


if __name__ == "__main__":
    typer.run(main)
