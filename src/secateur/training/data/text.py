"""What is trained on and how it becomes windows, as a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from secateur.errors import SecateurError
from secateur.texts.documents import SEPARATOR
from secateur.texts.rows import is_text

Format = Literal["auto", "text", "chat"]
InlineRows = Sequence[str | Mapping[str, Any]]
Source = str | Path | InlineRows


@dataclass(frozen=True)
class TrainingText:
    """Texts or conversations, and the windows that are cut from them.

    Raises:
        SecateurError: a field has a value that cannot be meant.
    """

    sources: Source | Sequence[Source]
    """One or several of: a text file (also .gz), a folder of them, a JSON-lines file, the name of
    a dataset (`name`, `name:config`, `name:config:split`). What is in memory already is a sequence
    of texts or rows within the sequence of sources: `[["one text", "another"]]`."""
    max_seq_length: int = 512
    """Tokens in a window."""
    max_tokens: int | None = None
    """Stop after this many; None: read everything."""
    format: Format = "auto"
    """`chat`: prompts and responses, with the loss on responses only; `auto`: by the first row."""
    document_separator: str | None = SEPARATOR
    """A line of this text stands between two documents of a text file; None: a file is one."""
    pack: bool = True
    """Several examples of a conversation in one window, told apart by `position_ids`; False: one
    example a window, for models that would not keep them apart."""
    streaming: bool = False
    """Tokenise while training instead of before."""
    shuffle_buffer: int = 1024
    """While streaming: windows out of which the next is drawn at random; 0: in order."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", _checked_sources(self.sources))
        if self.format not in get_args(Format):
            raise SecateurError(
                f"expected training format one of {', '.join(get_args(Format))}, "
                f"got {self.format!r}"
            )
        least = {"max_seq_length": 2, "max_tokens": 1, "shuffle_buffer": 0, "seed": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in least and value is not None and value < least[field.name]:
                raise SecateurError(
                    f"expected {field.name} of at least {least[field.name]}, got {value}"
                )
        if self.document_separator is not None and (
            not self.document_separator
            or self.document_separator.strip() != self.document_separator
        ):
            raise SecateurError(
                "expected a document_separator without white space around it, "
                f"got {self.document_separator!r}"
            )

    @property
    def each_source(self) -> tuple[str | Path | tuple[str | Mapping[str, Any], ...], ...]:
        """The sources one by one; texts and rows in memory as one tuple each."""
        return self.sources  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The sources in words."""
        return ", ".join(
            str(source) if isinstance(source, str | Path) else f"{len(source)} texts"
            for source in self.each_source
        )


def _checked_sources(sources: Any) -> tuple[Any, ...]:
    if isinstance(sources, str | Path):
        return (sources,)
    if not isinstance(sources, Sequence) or len(sources) == 0:
        raise SecateurError(
            "expected training text as a path, a dataset's name, or a sequence of them; "
            f"got {sources if isinstance(sources, Sequence) else type(sources).__name__}"
        )
    return tuple(
        source if isinstance(source, str | Path) else _checked_rows(source) for source in sources
    )


def _checked_rows(rows: Any) -> tuple[Any, ...]:
    if not isinstance(rows, Sequence) or not all(isinstance(row, str | Mapping) for row in rows):
        raise SecateurError(
            "expected each training source as a path, a dataset's name, or a sequence of texts "
            f"or rows; got {str(rows)[:80]}"
        )
    broken = next((number for number, row in enumerate(rows, start=1) if not is_text(row)), None)
    if broken is not None:
        raise SecateurError(
            f"expected texts, but text {broken} of {len(rows)} holds half a character (a surrogate "
            "without its other half)"
        )
    return tuple(rows)
