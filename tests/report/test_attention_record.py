import json
import math
from pathlib import Path

import pytest
from attention_builders import analysis, block, nothing_lazy, scattered

from secateur.errors import SecateurError
from secateur.report.attention_record import (
    ATTENTION_FILE,
    AttentionBlock,
    attention_from_text,
    load_attention,
)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    for record in (analysis(), nothing_lazy(), scattered()):
        assert attention_from_text(record.to_json()) == record
    path = tmp_path / ATTENTION_FILE
    path.write_text(analysis().to_json())
    assert load_attention(path) == load_attention(tmp_path) == analysis()


def test_a_block_has_the_numbers_of_its_strongest_heads() -> None:
    entry = block(0, 3.0, 9.0, masses=(5.0, 2.0))
    assert (entry.max_rank, entry.max_mass) == (9.0, 5.0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"attention\.json is not JSON"):
        attention_from_text("{")
    values = json.loads(analysis().to_json())
    values["blocks"][1]["ranks"] = ["high"]
    with pytest.raises(SecateurError, match=r"not an analysis of attention: blocks\.1\.ranks\.0"):
        attention_from_text(json.dumps(values))
    with pytest.raises(SecateurError, match=r"expected attention\.json, but .* is not a file"):
        load_attention(tmp_path)


@pytest.mark.parametrize(("ranks", "masses"), [((), ()), ((1.0, 2.0), (1.0,))])
def test_blocks_without_heads_are_refused(
    ranks: tuple[float, ...], masses: tuple[float, ...]
) -> None:
    message = f"each of one head or more, got {len(ranks)} and {len(masses)}"
    with pytest.raises(SecateurError, match=message):
        AttentionBlock(block=0, ranks=ranks, masses=masses)
    values = json.loads(analysis().to_json())
    values["blocks"][2].update(ranks=list(ranks), masses=list(masses))
    with pytest.raises(SecateurError, match=rf"blocks\.2: .*{message}"):
        attention_from_text(json.dumps(values))


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_means_that_nothing_has_are_refused(value: float) -> None:
    for ranks, masses in (((1.0, value), (1.0, 1.0)), ((1.0, 1.0), (value, 1.0))):
        with pytest.raises(SecateurError, match=rf"of at least 1, got {value:g} in block 4"):
            AttentionBlock(block=4, ranks=ranks, masses=masses)


def test_blocks_that_are_not_all_there_are_refused() -> None:
    for blocks in ((), (block(1, 2.0),), (block(0, 2.0), block(0, 2.0))):
        with pytest.raises(SecateurError, match=r"expected blocks 0, 1 and so on, got \["):
            analysis(blocks, ())
    for lazy in ((5,), (4, 3), (3, 3), (-1,)):
        with pytest.raises(SecateurError, match="expected lazy blocks among 0 to 4, ascending"):
            analysis(lazy=lazy)
