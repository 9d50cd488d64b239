"""Names and captions that are not clean text, and folders that are linked."""

import json
import os
from pathlib import Path

import pytest
from conftest import Make

from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import Folder
from omnitune.errors import UserError
from omnitune.files import Hashes


def ids(root: Path) -> list[str]:
    return [item.id for item in scan([Folder(path=Path("set"))], root, Hashes(root / "memo")).items]


def mistakes(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        ids(root)
    return str(caught.value)


def test_a_caption_with_half_a_character_is_told_with_its_line(make: Make, tmp_path: Path) -> None:
    make.image("set/a.png")
    make.text("set/metadata.jsonl", '{"file_name": "a.png", "caption": "a fox \\ud83d"}\n')
    assert mistakes(tmp_path) == (
        "set/metadata.jsonl:1: the caption of 'a.png' holds '\\ud83d', half a character; write the whole one"
    )


def latin(make: Make, folder: Path) -> Path:
    """A picture whose name is in Latin-1."""
    path = folder / os.fsdecode(b"caf\xe9.png")
    os.rename(make.image("plain.png"), path)
    return path


def test_a_file_name_that_is_not_utf8_is_told_with_its_bytes(make: Make, tmp_path: Path) -> None:
    make.text("set/a.txt", "words")
    path = latin(make, tmp_path / "set")
    path.with_suffix(".txt").write_text("words")
    told = f"{os.fsencode(path)!r} is a name that is not UTF-8; rename it"
    found = mistakes(tmp_path)
    assert found.startswith(f"set/caf\\udce9.txt: {told}")
    found.encode()
    make.text("set/metadata.jsonl", json.dumps({"file_name": path.name, "caption": "words"}))
    assert mistakes(tmp_path).startswith(f"set/metadata.jsonl:1: {told}")


def test_a_name_that_is_not_utf8_behind_a_link_is_told_too(make: Make, tmp_path: Path) -> None:
    make.text("set/a.txt", "words")
    path = latin(make, tmp_path)
    (tmp_path / "set" / "a.png").symlink_to(path)
    assert mistakes(tmp_path).startswith(f"set/a.txt: {os.fsencode(path)!r} is a name that is not UTF-8")


def test_a_name_that_is_not_utf8_and_is_not_used_is_noted(make: Make, tmp_path: Path) -> None:
    make.image("set/a.png")
    make.text("set/a.txt", "words")
    os.rename(latin(make, tmp_path / "set"), tmp_path / "set" / os.fsdecode(b"caf\xe9.md"))
    found = scan([Folder(path=Path("set"))], tmp_path, Hashes(tmp_path / "memo"))
    assert found.notes == ["set: neither media nor their captions, left out: caf\\udce9.md"]


def test_linked_folders_are_followed_and_loops_are_not(make: Make, tmp_path: Path) -> None:
    for name in ("set/a", "elsewhere/b"):
        make.image(f"{name}.png")
        make.text(f"{name}.txt", "words")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert ids(tmp_path) == ["set/a.png", "set/more/b.png"]


@pytest.mark.parametrize("target", ["gone.png", "a.png"])
def test_a_link_that_leads_nowhere_is_named(make: Make, tmp_path: Path, target: str) -> None:
    make.text("set/a.txt", "words")
    (tmp_path / "set" / "a.png").symlink_to(target)
    told = f"is a link to '{target}', which is not there; mend the link or remove it"
    assert mistakes(tmp_path) == f"set/a.png: {told}"
    make.text("set/metadata.jsonl", '{"file_name": "a.png", "caption": "words"}')
    assert mistakes(tmp_path) == f"set/metadata.jsonl:1: file_name 'a.png' {told}"
