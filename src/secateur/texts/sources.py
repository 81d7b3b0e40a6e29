"""What a source is: files, a folder of them, or a dataset's name."""

from collections.abc import Iterator
from pathlib import Path

from secateur.errors import SecateurError
from secateur.texts.dataset_rows import dataset_rows
from secateur.texts.files import JSON_SUFFIXES, TEXT_SUFFIXES, file_rows
from secateur.texts.rows import Row, text_of

_LONGEST_NAME = 255


def source_files(source: str | Path, purpose: str) -> list[Path] | None:
    """The files of a source in the order of their names, or None for a dataset's name.

    Args:
        source: a file, a folder, or the name of a dataset as a string.
        purpose: what the text is for, for messages.

    Raises:
        SecateurError: there is no such source, or no text in the folder.
    """
    path = Path(source)
    if len(path.name) > _LONGEST_NAME:
        raise SecateurError(
            f"{purpose} source {str(source)[:80]!r}... is too long for the name of a file or "
            "dataset; give texts as a list"
        )
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise SecateurError(
            f"{purpose} source {str(source)[:80]!r}... cannot be read: {error.strerror}"
        ) from None
    if is_folder:
        return _folder_files(path, purpose)
    if is_file:
        return [path]
    if isinstance(source, str) and _may_be_dataset(source):
        return None
    raise SecateurError(
        f"{purpose} source {source} is neither a file nor a folder, nor may it be a "
        "dataset's name (name[:config[:split]])"
    )


def read_rows(source: str | Path, purpose: str) -> Iterator[Row]:
    """The rows of a source one after another: texts of files, JSON lines, rows of a dataset.

    Raises:
        SecateurError: there is no such source, or it cannot be read.
    """
    files = source_files(source, purpose)
    if files is None:
        yield from dataset_rows(str(source))
        return
    for path in files:
        yield from file_rows(path)


def read_texts(source: str | Path, purpose: str) -> Iterator[str]:
    """The documents of a source, one after another.

    Raises:
        SecateurError: there is no such source, or it cannot be read as text.
    """
    return map(text_of, read_rows(source, purpose))


def _may_be_dataset(name: str) -> bool:
    suffixes = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".json", ".gz", ".csv")
    dataset = name.partition(":")[0]
    is_path = name.startswith((".", "/", "~")) or name.endswith(suffixes)
    return not is_path and dataset.count("/") <= 1


def _folder_files(folder: Path, purpose: str) -> list[Path]:
    wanted = (*TEXT_SUFFIXES, *JSON_SUFFIXES)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.name.endswith(wanted) and path.is_file() and not _is_hidden(path, folder)
    )
    if not files:
        raise SecateurError(f"{purpose} folder {folder} holds no files ending in {wanted}")
    return files


def _is_hidden(path: Path, folder: Path) -> bool:
    """Kept by systems and editors: `._a.txt`, `.ipynb_checkpoints/a.txt`."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
