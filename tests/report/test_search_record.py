import json
import math
from pathlib import Path

import pytest
from search_builders import full_search, loss_search, nothing_found, search

from secateur.errors import SecateurError
from secateur.report.search_record import SEARCH_FILE, load_search, search_from_text


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    for record in (search(), nothing_found(), full_search()):
        assert search_from_text(record.to_json()) == record
    path = tmp_path / SEARCH_FILE
    path.write_text(search().to_json())
    assert load_search(path) == load_search(tmp_path) == search()


def test_numbers_that_json_cannot_hold_come_back(tmp_path: Path) -> None:
    again = search_from_text(loss_search().to_json())
    assert again.trials[0].validation.value == math.inf
    assert math.isnan(again.trials[1].validation.value)


def test_whether_anything_was_found() -> None:
    assert search().is_found
    assert not nothing_found().is_found
    assert search().state("single").name == "single"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="is not JSON"):
        search_from_text("{")
    values = json.loads(search().to_json())
    values["trials"][0]["cut"]["matrix"] = "mlp"
    with pytest.raises(SecateurError, match=r"not a record of a search: trials\.0\.cut\.matrix"):
        search_from_text(json.dumps(values))
    with pytest.raises(SecateurError, match=r"expected search\.json, but .* is not a file"):
        load_search(tmp_path)
