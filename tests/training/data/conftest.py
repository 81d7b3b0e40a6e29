"""Tokenizers whose ids can be told by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from byte_tokenizers import CountingTokenizer, byte_tokenizer


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return byte_tokenizer()
