"""What the components that a cut removes have stored: the model answers with them alone.

Section 5 of the LASER paper: the cut matrices become what the truncation throws away, the rest of
the model stays, and the answers are set beside those of the dense and of the cut model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.evaluate.items import Item, MinimalPair, MultipleChoice
from secateur.evaluate.scoring import Score
from secateur.evaluate.tokenizer import Tokenizer
from secateur.lowrank import Intervention
from secateur.models.blocks import BlockList
from secateur.models.sites import WeightSite
from secateur.report.search_record import AnswerRecord
from secateur.search.cuts import CutMatrix, replaced
from secateur.search.generation import GreedyAnswers
from secateur.search.likelihood import Likelihood
from secateur.search.space import Place
from secateur.search.task import answer_of


@dataclass(frozen=True)
class Asked:
    """Fixed questions, and how a model answers them."""

    questions: tuple[tuple[str, str | None], ...]
    """Prompt and, where there is one, the right answer."""
    answers: Callable[[], Sequence[str]]
    """What the model answers as it is now, in the order of the questions."""


def analyse(
    cuts: Sequence[Intervention], sites: Mapping[Place, WeightSite], asked: Asked
) -> tuple[AnswerRecord, ...]:
    """Answer three times: dense, with the kept components, and with the discarded ones.

    Args:
        cuts: at least one; the model is dense before and afterwards.
        sites: of the cuts.
        asked: the questions.
    """
    found = [asked.answers()]
    for part in ("kept", "discarded"):
        weights = {
            (site := sites[cut.matrix, cut.block]): CutMatrix(site).weight(cut.fraction, part)
            for cut in cuts
        }
        with replaced(weights):
            found.append(asked.answers())
    return tuple(
        AnswerRecord(prompt=prompt, expected=expected, dense=dense, kept=kept, discarded=discarded)
        for (prompt, expected), dense, kept, discarded in zip(asked.questions, *found, strict=True)
    )


def ask_items(
    model: nn.Module,
    tokenizer: Tokenizer,
    blocks: BlockList,
    items: Sequence[Item],
    max_new_tokens: int,
    batch_size: int,
) -> Asked:
    """Items of one kind: the answer is the likeliest candidate, or a greedy continuation."""
    questions = tuple(map(answer_of, items))
    if isinstance(items[0], MultipleChoice | MinimalPair):
        likelihood = Likelihood(model, tokenizer, blocks, items, "accuracy", batch_size)

        def choose() -> list[str]:
            return [
                _likeliest(item, scores)
                for item, scores in zip(items, likelihood.scores(0), strict=True)
            ]

        return Asked(questions, choose)
    prompts = [prompt for prompt, _ in questions]
    greedy = GreedyAnswers(model, tokenizer, prompts, max_new_tokens, batch_size)
    return Asked(questions, greedy.texts)


def ask_prompts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
) -> Asked:
    """Prompts with no right answer: greedy continuations.

    Raises:
        SecateurError: an empty prompt, or a model that cannot generate.
    """
    greedy = GreedyAnswers(model, tokenizer, prompts, max_new_tokens, batch_size)
    return Asked(tuple((prompt, None) for prompt in prompts), greedy.texts)


def _likeliest(item: Item, scores: Sequence[Score]) -> str:
    assert isinstance(item, MultipleChoice | MinimalPair)
    texts = item.choices if isinstance(item, MultipleChoice) else (item.good, item.bad)
    best = max(range(len(texts)), key=lambda index: scores[index].log_prob)
    return texts[best].strip()
