"""A check decodes on all cores what it did not decode before, and tells all that is wrong at once."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from omnitune import check, load_run
from omnitune.data.captions.index import CaptionDataset
from omnitune.errors import UserError
from omnitune.progress import CLEAR, Working, say
from omnitune.testing.runs import ASSETS, small_run


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("set")
    folder.mkdir()
    for i in range(5):
        Image.effect_noise((96, 64), 40 + i).convert("RGB").save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"noise {i}")
    return folder


def checked(folder: Path, size: str = "32x32") -> None:
    run = small_run(ASSETS / "pocket-wan", Path("cache"))
    run["data"] |= {"sources": [str(folder)], "buckets": {"frames": [1], "sizes": [size]}}
    check(load_run({"name": "run", **run}))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The items that are decoded."""
    seen: list[int] = []
    errors = CaptionDataset.decode_errors
    monkeypatch.setattr(CaptionDataset, "decode_errors", lambda self, i: seen.append(i) or errors(self, i))
    return seen


def test_what_was_decoded_and_did_not_change_is_not_decoded_again(pictures: Path, decoded: list[int]) -> None:
    checked(pictures)
    assert sorted(decoded) == [0, 1, 2, 3, 4]
    decoded.clear()
    checked(pictures)
    assert decoded == []
    Image.effect_noise((96, 64), 99).convert("RGB").save(pictures / "3.jpg")
    (pictures / "1.txt").write_text("another caption")
    checked(pictures)
    assert decoded == [3]


def test_files_that_cannot_be_opened_and_that_cannot_be_decoded_are_told_at_once(
    pictures: Path, decoded: list[int]
) -> None:
    (pictures / "0.jpg").write_bytes(b"no picture")
    whole = (pictures / "2.jpg").read_bytes()
    (pictures / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "4.txt").write_text(" ")
    for again in range(2):
        with pytest.raises(UserError) as told:
            checked(pictures)
        lines = str(told.value).split("\n")
        assert len(lines) == 3, lines
        assert all(any(name in line for line in lines) for name in ("0.jpg", "2.jpg", "4.txt"))
        assert len(decoded) == 3 + again  # the sound ones once


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_at_work_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Working("loading"):
        pass
    say("done")
    assert terminal.getvalue() == f"{CLEAR}loading{CLEAR}{CLEAR}done\n"


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Working("loading"):
        say("done")
    assert capsys.readouterr().err == "done\n"
