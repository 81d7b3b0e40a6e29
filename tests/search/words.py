"""Items in the words of the test tokenizer; all random, and the same for the same seed."""

import random

from word_tokenizer import WORDS

from secateur.evaluate.items import Cloze, Item, MinimalPair, MultipleChoice
from secateur.search import ItemTask, Metric, questions_of_items


def text(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def choices(number: int, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [
        MultipleChoice(text(rng, 2, 9), tuple(text(rng, 1, 3) for _ in range(3)), rng.randrange(3))
        for _ in range(number)
    ]


def pairs(number: int, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [MinimalPair(text(rng, 3, 8), text(rng, 3, 8)) for _ in range(number)]


def clozes(number: int, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [Cloze(text(rng, 2, 12) + " ", text(rng, 1, 2)) for _ in range(number)]


def task(items: list[Item], metric: Metric = "accuracy", name: str = "words") -> ItemTask:
    return ItemTask(name, questions_of_items(items), metric)
