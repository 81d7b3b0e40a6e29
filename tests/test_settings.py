from pathlib import Path

import pytest

from secateur.errors import SecateurError
from secateur.settings import Settings, read_settings
from secateur_kernels.settings import cache_folder

NAMES = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SECATEUR_NO_PROGRESS"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name in ("SECATEUR_CACHE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_set_by_default() -> None:
    assert read_settings() == Settings(offline=False, no_progress=False, rank=0)


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
                offline=expected and not is_progress,
                no_progress=expected and is_progress,
                rank=0,
            )
    assert read_settings() == Settings(offline=False, no_progress=False, rank=0)


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


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", f" {tmp_path / 'new'} ")
    assert cache_folder() == tmp_path / "new"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for value, expected in (("~/kept", tmp_path / "kept"), ("", tmp_path / ".cache" / "secateur")):
        monkeypatch.setenv("SECATEUR_CACHE", value)
        assert cache_folder() == expected
    monkeypatch.setenv("XDG_CACHE_HOME", "~/other")
    assert cache_folder() == tmp_path / "other" / "secateur"
    assert not list(tmp_path.iterdir())


def test_cache_that_cannot_be_a_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("text")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    with pytest.raises(SecateurError, match=r"SECATEUR_CACHE must be a folder, but .*file is a fi"):
        cache_folder()
    monkeypatch.setenv("SECATEUR_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(SecateurError, match=r"SECATEUR_CACHE must be set, for ~nobody.* cannot be"):
        cache_folder()


@pytest.mark.parametrize(("value", "expected"), [("0", 0), ("3", 3), (" 12 ", 12), ("", 0)])
def test_rank(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setenv("RANK", value)
    assert read_settings().rank == expected


@pytest.mark.parametrize("value", ["-1", "one", "1.0"])
def test_rank_that_is_no_whole_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("RANK", value)
    with pytest.raises(SecateurError, match=f"RANK must be a whole number, but is '{value}'"):
        read_settings()
