"""Several documents in one text, as corpora are handed around."""

from collections.abc import Callable

SEPARATOR = "<|endoftext|>"
"""A line of this stands between two documents: GPT-2's token, which other tokenizers spell out."""


def split_documents(text: str, count_tokens: Callable[[str], int]) -> list[str]:
    """The documents of a text between lines of the separator, without white space around them.

    A text without such a line is one document, as it is; so is one for a tokenizer that has the
    separator as a token, which tells the model itself. Blank documents are left out.

    Args:
        text: of one or several documents.
        count_tokens: how many tokens a tokenizer makes of a text, without special tokens.
    """
    if SEPARATOR not in text or count_tokens(SEPARATOR) == 1:
        return [text]
    documents: list[str] = []
    lines: list[str] = []
    for line in [*text.splitlines(keepends=True), SEPARATOR]:
        if line.strip() == SEPARATOR:
            documents.append("".join(lines))
            lines = []
        else:
            lines.append(line)
    if len(documents) == 1:
        return [text]
    return [document.strip() for document in documents if document.strip()]
