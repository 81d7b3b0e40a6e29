import pytest

from secateur.errors import SecateurError
from secateur.settings import Settings, read_settings

NAMES = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SECATEUR_NO_PROGRESS"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_set_by_default() -> None:
    assert read_settings() == Settings(offline=False, no_progress=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(text, True) for text in ("1", "true", "yes", "on", "TRUE", "On", " 1 ", "YES\n")],
        *[(text, False) for text in ("", "0", "false", "no", "off", "False", "OFF", "  ")],
    ],
)
def test_flags(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    for name in NAMES:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            is_progress = name == "SECATEUR_NO_PROGRESS"
            assert read_settings() == Settings(
                offline=expected and not is_progress, no_progress=expected and is_progress
            )
    assert read_settings() == Settings(offline=False, no_progress=False)


def test_either_name_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert read_settings().offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    assert read_settings().offline


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["2", "maybe", "y", "-1", "none"])
def test_value_that_cannot_be_understood_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    message = rf"{name} must be one of \['', '0', '1', .*'yes'\], but is '{value}'"
    with pytest.raises(SecateurError, match=message):
        read_settings()


def test_bad_value_is_refused_beside_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "maybe")
    with pytest.raises(SecateurError, match="TRANSFORMERS_OFFLINE must be one of"):
        read_settings()
