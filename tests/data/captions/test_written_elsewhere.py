"""Captions as other tools and systems write them are found, or told in one line."""

import itertools
import json
import unicodedata
from pathlib import Path

import pytest
from conftest import Make

from omnitune.data.captions.item import Item
from omnitune.data.captions.lists import LineLists
from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import SIDE_CARS, Folder
from omnitune.data.captions.tables import CAPTIONS, FILES, METADATA, OTHER_CAPTIONS, OTHERS
from omnitune.errors import UserError
from omnitune.files import Hashes

FORMS = ("NFC", "NFD")
CASES = (str, str.upper, str.title)


def scanned(root: Path, source: Folder | LineLists | None = None) -> list[Item]:
    return list(scan([source or Folder(path=Path("set"))], root, Hashes(root / "memo")).items)


def notes(root: Path) -> list[str]:
    return scan([Folder(path=Path("set"))], root, Hashes(root / "memo")).notes


SPELLINGS = [
    (unicodedata.normalize(form, case("café")), f"{between}{ending}")
    for form, case, between, suffix in itertools.product(FORMS, CASES, ("", ".png"), SIDE_CARS)
    for ending in (suffix, suffix.upper())
]


@pytest.mark.parametrize("form", FORMS)
def test_a_caption_in_any_spelling_is_found(make: Make, tmp_path: Path, form: str) -> None:
    for number, (stem, ending) in enumerate(SPELLINGS):
        folder = f"set/{number}"
        make.image(f"{folder}/{unicodedata.normalize(form, 'café')}.png")
        make.text(f"{folder}/{stem}{ending}", f"words {number}")
    found = scanned(tmp_path)
    assert sorted(item.caption for item in found) == sorted(f"words {i}" for i in range(len(SPELLINGS)))
    assert notes(tmp_path) == []


def test_a_caption_of_the_very_name_comes_first(make: Make, tmp_path: Path) -> None:
    for name in ("a.png", "A.png", "b.png", "B.png"):
        make.image(f"set/{name}")
    for name in ("a.txt", "A.txt", "b.txt", "b.caption", "B.cap"):
        make.text(f"set/{name}", name)
    found = {item.file: item.caption for item in scanned(tmp_path)}
    assert found == {"a.png": "a.txt", "A.png": "A.txt", "b.png": "b.txt", "B.png": "B.cap"}


def test_what_may_be_the_caption_of_two_is_that_of_its_own_name(make: Make, tmp_path: Path) -> None:
    make.image("set/a.png")
    make.image("set/A.png")
    make.text("set/a.txt", "words")
    with pytest.raises(UserError, match=r"^set/A\.png: has no caption; write one to set/A\.txt"):
        scanned(tmp_path)


def as_table(name: str, rows: list[dict[str, str]]) -> str:
    name = name.lower()
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".json"):
        return json.dumps(rows)
    return "\n".join(",".join(cells) for cells in ([*rows[0]], *(row.values() for row in rows)))


@pytest.mark.parametrize("name", [*METADATA, *OTHERS, "Captions.CSV", "METADATA.JSON"])
@pytest.mark.parametrize("spelled", ["café.png", "cafe\u0301.png", "CAFÉ.PNG", "./café.png", "café"])
def test_a_table_of_any_name_names_files_in_any_spelling(
    make: Make, tmp_path: Path, name: str, spelled: str
) -> None:
    make.image("set/café.png")
    rows = [{"file_name": spelled, "score": "7", "text": "words"}]
    make.text(f"set/{name}", as_table(name, rows))
    (item,) = scanned(tmp_path)
    assert (item.id, item.caption) == ("set/café.png", "words")
    assert notes(tmp_path) == [f"set/{name}: columns that nothing reads: score"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("caption", [*CAPTIONS, *OTHER_CAPTIONS])
def test_columns_have_the_names_that_other_tools_give_them(
    make: Make, tmp_path: Path, file: str, caption: str
) -> None:
    make.image("set/a.png")
    make.text("set/captions.jsonl", json.dumps({file: "a.png", caption: "words"}))
    assert [item.caption for item in scanned(tmp_path)] == ["words"]


@pytest.mark.parametrize("value", ["words", ["words"], {"caption": "words", "tags": "x"}])
def test_a_mapping_from_files_to_captions_is_a_table(make: Make, tmp_path: Path, value: object) -> None:
    make.image("set/deep/a.png")
    for name in ("deep/a.png", "deep/a"):
        make.text("set/captions.json", json.dumps({name: value}))
        assert [(item.file, item.caption) for item in scanned(tmp_path)] == [("deep/a.png", "words")]


@pytest.mark.parametrize("value", [3, "words", None, [3], {"a.png": 3}, {"a.png": []}, {"a.png": None}])
def test_a_table_of_another_shape_is_told(make: Make, tmp_path: Path, value: object) -> None:
    make.image("set/a.png")
    make.text("set/captions.json", json.dumps(value))
    with pytest.raises(UserError, match=r"^set/captions\.json: "):
        scanned(tmp_path)


def test_a_table_of_captions_does_not_take_the_place_of_those_beside_files(
    make: Make, tmp_path: Path
) -> None:
    make.image("set/a.png")
    make.text("set/a.txt", "words")
    make.text("set/captions.json", json.dumps({"a.png": "others"}))
    assert [item.caption for item in scanned(tmp_path)] == ["words"]
    assert notes(tmp_path) == ["set: neither media nor their captions, left out: captions.json"]


@pytest.mark.parametrize("number", [1, 3, 4, 300])
def test_many_missing_captions_are_one_line(make: Make, tmp_path: Path, number: int) -> None:
    picture = make.image("set/0.png").read_bytes()
    for i in range(1, number):
        make.path(f"set/{i}.png").write_bytes(picture)
    with pytest.raises(UserError) as told:
        scanned(tmp_path)
    lines = str(told.value).split("\n")
    assert len(lines) == (number if number <= 3 else 1)
    if number == 300:
        assert lines == [
            "set: 300 files have no caption: 0.png, 1.png, 10.png and 297 more; write a .txt beside each, "
            "name them in metadata.jsonl, or state default_caption"
        ]


def test_a_source_may_state_a_trigger_a_caption_and_repeats(make: Make, tmp_path: Path) -> None:
    make.image("set/a.png")
    make.image("set/b.png")
    make.text("set/b.txt", "a hen")
    stated = Folder(path=Path("set"), trigger="sks", default_caption="a picture", repeats=2)
    found = scanned(tmp_path, stated)
    assert [item.caption for item in found] == ["sks, a picture"] * 2 + ["sks, a hen"] * 2
    assert [item.id for item in found] == ["set/a.png", "set/a.png#2", "set/b.png", "set/b.png#2"]
    make.text("set/prompts.txt", "a fox")
    make.text("set/videos.txt", "a.png")
    lists = LineLists(path=Path("set"), trigger="sks", repeats=3)
    assert [item.caption for item in scanned(tmp_path, lists)] == ["sks, a fox"] * 3
    with pytest.raises(ValueError, match="repeats must be 1 or more, not 0"):
        Folder(path=Path("set"), repeats=0)
