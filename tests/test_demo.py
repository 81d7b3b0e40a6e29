"""What the demonstration does, without doing it."""

import pytest

from secateur.demo import entries
from secateur.report.plots import FAMILY_COLOURS


@pytest.mark.parametrize("num_blocks", [1, 8, 32])
def test_entries_have_names_folders_and_recipes_of_their_own(num_blocks: int) -> None:
    found = entries(num_blocks)
    assert len(found) == 14
    assert len({entry.name for entry in found}) == 14
    assert len({entry.folder_name for entry in found}) == 14
    assert all(":" not in entry.folder_name and " " not in entry.folder_name for entry in found)
    assert len({entry.recipe for entry in found}) == 14
    assert {entry.family for entry in found} <= set(FAMILY_COLOURS)


def test_the_regional_optimizer_is_shown_at_two_of_four() -> None:
    stages = [entry.stage for entry in entries(8) if entry.setting == "2:4"]
    methods = [stage["method"] for stage in stages]
    assert methods == ["magnitude", "wanda", "sparsegpt", "wanda++", "best-2:4"]
    assert all(stage["pattern"] == "2:4" for stage in stages)
