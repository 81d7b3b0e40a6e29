"""Facts asked in several ways, as in CounterFact (Meng et al., arXiv 2202.05262).

Two formats of a record, in JSON lines or as one JSON array:

| keys                                        | what they hold                                     |
|---------------------------------------------|----------------------------------------------------|
| `requested_rewrite`, `paraphrase_prompts`   | as published: `prompt` with {} for the `subject`,  |
|                                             | the answer in `target_true.str`, whole paraphrases |
| `subject, relation, answer`, `paraphrases`  | the same, flat; {} in a paraphrase is filled too   |

Other keys (the counterfactual target, neighbours) are ignored; paraphrases may be missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.evaluate.items import Cloze, check_limit, parse_json, required_text, text_lines

_FLAT = frozenset({"subject", "relation", "answer"})
_PUBLISHED = "requested_rewrite"


@dataclass(frozen=True)
class Fact:
    """What follows each of these prompts?"""

    prompt: str
    """With the subject filled in, without space at the end."""
    paraphrases: tuple[str, ...]
    answer: str

    def items(self) -> dict[str, tuple[Cloze, ...]]:
        """The questions, by `original` and `paraphrase`."""
        original, *others = (
            Cloze(f"{prompt} ", self.answer) for prompt in (self.prompt, *self.paraphrases)
        )
        return {"original": (original,), "paraphrase": tuple(others)}


def is_counterfact(path: str | Path) -> bool:
    """Whether the first record of a file is a fact; False where that cannot be told."""
    try:
        _, record = next(_records(Path(path)))
    except (SecateurError, StopIteration):
        return False
    return isinstance(record, dict) and (_PUBLISHED in record or record.keys() >= _FLAT)


def read_counterfact(path: str | Path, limit: int | None = None) -> tuple[Fact, ...]:
    """The facts of a file, or the first `limit` of them.

    Raises:
        SecateurError: with file, record, what was expected and what came.
    """
    path = Path(path)
    check_limit(limit)
    facts: list[Fact] = []
    for where, record in _records(path):
        facts.append(_fact(record, where))
        if len(facts) == limit:
            break
    if not facts:
        raise SecateurError(f"expected facts in {path}, but it is empty")
    return tuple(facts)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Records, each after where it stands."""
    lines = text_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        whole = "".join([first[1], *(line for _, line in lines)])
        for number, record in enumerate(parse_json(whole, str(path)), start=1):
            yield f"{path}, record {number}", record
        return
    yield first[0], parse_json(first[1], first[0])
    for where, line in lines:
        yield where, parse_json(line, where)


def _fact(record: Any, where: str) -> Fact:
    if not isinstance(record, dict):
        raise SecateurError(f"{where}: expected a fact, but got {type(record).__name__}")
    if _PUBLISHED in record:
        record = _flattened(record, where)
    _require_keys(record, _FLAT, where)
    subject = required_text(record, "subject", where).strip()
    prompt = _filled(required_text(record, "relation", where), subject)
    if prompt is None:
        raise SecateurError(
            f"{where}: expected relation to hold {{}} where the subject stands, "
            f"but got {record['relation']!r}"
        )
    answer = required_text(record, "answer", where).strip()
    texts = record.get("paraphrases", [])
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise SecateurError(
            f"{where}: expected paraphrases to be a list of texts that are not blank, "
            f"but got {texts!r}"
        )
    return Fact(prompt, tuple(_filled(text, subject) or text.rstrip() for text in texts), answer)


def _flattened(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A published record with the flat keys."""
    rewrite = record[_PUBLISHED]
    if not isinstance(rewrite, dict):
        raise SecateurError(f"{where}: expected {_PUBLISHED} to be an object, got {rewrite!r}")
    _require_keys(rewrite, frozenset({"prompt", "subject", "target_true"}), where)
    target = rewrite["target_true"]
    if not isinstance(target, dict) or "str" not in target:
        raise SecateurError(f"{where}: expected the answer in target_true.str, but got {target!r}")
    return {
        "subject": rewrite["subject"],
        "relation": rewrite["prompt"],
        "answer": target["str"],
        "paraphrases": record.get("paraphrase_prompts", []),
    }


def _require_keys(record: dict[str, Any], keys: frozenset[str], where: str) -> None:
    if missing := sorted(keys - record.keys()):
        raise SecateurError(
            f"{where}: expected the keys {', '.join(sorted(keys))}, "
            f"but {', '.join(missing)} is missing"
        )


def _filled(template: str, subject: str) -> str | None:
    """The prompt about the subject; None where the template has no place for it."""
    # Not str.format: other braces of a text are text.
    for place in ("{}", "{subject}"):
        if place in template:
            return template.replace(place, subject).rstrip()
    return None
