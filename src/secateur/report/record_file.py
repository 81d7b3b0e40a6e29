"""Finds and reads the file in which a record is kept."""

from pathlib import Path

from secateur.errors import SecateurError


def record_file(path: str | Path, name: str) -> Path:
    """The file of a record: `path` itself, or `name` in the folder `path`.

    Raises:
        SecateurError: there is none.
    """
    path = Path(path)
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise SecateurError(f"expected {name}, but {file} is not a file")
    return file


def read_record(file: Path) -> str:
    """The text of such a file.

    Raises:
        SecateurError: it is not UTF-8, or may not be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SecateurError(f"{file} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise SecateurError(f"{file} cannot be read: {error.strerror}") from None
