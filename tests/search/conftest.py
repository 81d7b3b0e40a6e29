"""A tokenizer of whole words for the tiny models, and tasks in its words."""

import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from word_tokenizer import word_tokenizer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()
