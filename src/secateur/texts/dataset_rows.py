"""Rows of a dataset by name: the one door to `datasets`."""

from collections.abc import Iterator
from typing import Any

from secateur.errors import SecateurError
from secateur.texts.rows import Row


def dataset_rows(name: str) -> Iterator[Row]:
    """Stream the rows of `name`, `name:config` or `name:config:split` (split: `train`).

    Raises:
        SecateurError: `datasets` is not installed, or the dataset cannot be read.
    """
    dataset, config, split = _parts(name)
    library = _library(name)
    try:
        rows = library.load_dataset(dataset, config, split=split, streaming=True)
        for number, value in enumerate(rows, start=1):
            yield Row(f"dataset {name}", "row", number, value)
    except Exception as error:
        raise SecateurError(f"dataset {name} cannot be read: {error}") from error


def dataset_identity(name: str) -> str:
    """What tells this state of a dataset from others, without reading its rows.

    It is the hash that `datasets` names its own caches by, which follows the commit on the Hub or
    the data files.

    Raises:
        SecateurError: as `dataset_rows`.
    """
    dataset, config, split = _parts(name)
    library = _library(name)
    try:
        builder = library.load_dataset_builder(dataset, config)
    except Exception as error:
        raise SecateurError(f"dataset {name} cannot be read: {error}") from error
    return f"{dataset}:{builder.cache_dir}:{builder.hash}:{split}"


def _parts(name: str) -> tuple[str, str | None, str]:
    dataset, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    return dataset, config or None, split or "train"


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise SecateurError(
            f"{name} is not a file or folder here; to read it as a dataset, install the extra: "
            "pip install 'secateur[datasets]'"
        ) from None
    return datasets
