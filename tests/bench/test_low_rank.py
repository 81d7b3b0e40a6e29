"""The benchmark of low rank: what it refuses before it measures and records anything."""

import pytest
import typer
from bench import low_rank


def test_an_unknown_method_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "OneText", lambda *_: pytest.fail("a model is read"))
    with pytest.raises(typer.BadParameter, match=r"expected methods of svd; .*, got svd; svdd"):
        low_rank.quality(methods="svd; svdd")
