import json
import re
from pathlib import Path

import pytest
from PIL import Image

from omnitune.data import media
from omnitune.data.captions.item import Item
from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import Folder
from omnitune.errors import UserError
from omnitune.files import Hashes


def rows(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def row(file, caption="words"):
    return {"file_name": file, "caption": caption}


def mistakes(root, *folders):
    """The lines of the error that scanning raises."""
    with pytest.raises(UserError) as caught:
        scan([Folder(path=Path(folder)) for folder in folders], root, Hashes(root / "memo"))
    return str(caught.value).split("\n")


def one_mistake(root, folder="set"):
    (only,) = mistakes(root, folder)
    return only


def scanned(root, folder="set"):
    return scan([Folder(path=Path(folder))], root, Hashes(root / "memo"))


@pytest.mark.parametrize("key", ["caption", "text", "prompt"])
def test_jsonl_names_files_and_captions(make, tmp_path, key):
    make.clip("set/deep/a.mp4", frames=9)
    make.image("set/b.png")
    lines = rows({"file_name": "deep/a.mp4", key: " a fox "}, {key: "a hen", "file_name": "./b.png"})
    make.text("set/metadata.jsonl", "\ufeff" + lines + "\n")
    assert list(scanned(tmp_path).items) == [
        Item("set/deep/a.mp4", "deep/a.mp4", "a fox", "set/metadata.jsonl:1", "video", 48, 32, 9, 24.0),
        Item("set/b.png", "b.png", "a hen", "set/metadata.jsonl:2", "image", 12, 8, 1, 0.0),
    ]
    assert scanned(tmp_path).notes == []


def test_csv_names_files_and_captions(make, tmp_path):
    make.image("set/a.png")
    make.image("set/b.png")
    make.text("set/metadata.csv", 'text,file_name\n"a fox, red",a.png\n\n"two\nlines",b.png\n')
    found = [(item.id, item.caption, item.where) for item in scanned(tmp_path).items]
    assert found == [
        ("set/a.png", "a fox, red", "set/metadata.csv:2"),
        ("set/b.png", "two\nlines", "set/metadata.csv:5"),
    ]


def test_side_cars_caption_files_of_all_folders_in_order(make, tmp_path):
    for name in ("b.png", "deep/a.mp4", "a.gif", "c.JPG"):
        kind = make.clip if name.endswith("mp4") else make.animation if name.endswith("gif") else make.image
        kind(f"set/{name}")
        make.text(f"set/{name.rsplit('.')[0]}.txt", f"words of {name}\n")
    make.image("set/.hidden.png")
    make.image("set/.folder/x.png")
    found = scanned(tmp_path)
    assert [item.id for item in found.items] == ["set/a.gif", "set/b.png", "set/c.JPG", "set/deep/a.mp4"]
    assert [item.caption for item in found.items][3] == "words of deep/a.mp4"
    assert [item.kind for item in found.items] == ["video", "image", "image", "video"]
    assert found.items[3].where == "set/deep/a.txt"
    assert found.notes == []


def test_sizes_are_those_that_are_shown(make, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    make.image("set/a.jpg", exif=exif)
    make.clip("set/b.mp4", rotation=90)
    make.text("set/metadata.jsonl", rows(row("a.jpg"), row("b.mp4")))
    assert [(item.width, item.height) for item in scanned(tmp_path).items] == [(8, 12), (32, 48)]


def test_many_files_keep_their_order(make, tmp_path):
    names = [f"{i:03}.png" for i in range(100)]
    for i, name in enumerate(names):
        make.image(f"set/{name}", height=1 + i)
    make.text("set/metadata.jsonl", rows(*(row(name) for name in reversed(names))))
    items = scanned(tmp_path).items
    assert [item.id for item in items] == [f"set/{name}" for name in reversed(names)]
    assert [item.height for item in items] == list(range(100, 0, -1))


def test_absolute_paths_give_the_same_ids(make, tmp_path):
    make.image("set/a.png")
    make.text("set/a.txt", "words")
    (item,) = scan([Folder(path=tmp_path / "set")], Path("/elsewhere"), Hashes(tmp_path)).items
    assert (item.id, item.where) == ("set/a.png", f"{tmp_path}/set/a.txt")
    (item,) = scan([Folder(path=Path("."))], tmp_path / "set", Hashes(tmp_path)).items
    assert item.id == "set/a.png"


def test_what_metadata_does_not_name_is_a_note(make, tmp_path):
    for name in "abcdef":
        make.image(f"set/{name}.png")
    make.text("set/metadata.jsonl", rows(row("a.png")))
    found = scanned(tmp_path)
    assert [item.id for item in found.items] == ["set/a.png"]
    assert found.notes == ["set: not named by metadata.jsonl and left out: b.png, c.png, d.png and 2 more"]


def test_what_is_neither_media_nor_a_caption_is_a_note(make, tmp_path):
    make.image("set/a.png")
    make.text("set/a.txt", "words")
    make.text("set/b.txt", "words of nothing")
    make.text("set/c.avi", "")
    assert scanned(tmp_path).notes == ["set: neither media nor their captions, left out: b.txt, c.avi"]


def test_a_missing_folder_is_named_with_where_it_was_looked_for(make, tmp_path):
    make.text("file", "")
    assert mistakes(tmp_path, "gone", "file") == [
        f"data.sources: gone: does not exist (looked for {tmp_path}/gone)",
        f"data.sources: file: is a file, not a folder (looked for {tmp_path}/file)",
    ]


def test_an_empty_folder_is_named(make, tmp_path):
    make.text("set/notes.md", "")
    kinds = "gif jpeg jpg mkv mov mp4 png webm webp"
    assert one_mistake(tmp_path) == f"set: holds no pictures or clips; put {kinds} files there"


def test_two_metadata_files_are_refused(make, tmp_path):
    make.text("set/metadata.jsonl", "")
    make.text("set/metadata.csv", "")
    message = "set: holds both metadata.jsonl and metadata.csv; keep the one that is right"
    assert one_mistake(tmp_path) == message


@pytest.mark.parametrize(
    ("name", "text"), [("metadata.jsonl", "\n"), ("metadata.csv", "file_name,caption\n")]
)
def test_metadata_without_rows_is_named(make, tmp_path, name, text):
    make.text(f"set/{name}", text)
    message = f"set/{name}: has no rows; add one a file, with file_name and caption"
    assert one_mistake(tmp_path) == message


def test_every_mistake_of_a_jsonl_is_told_with_its_line(make, tmp_path):
    make.image("set/a.png")
    make.text("set/x.avi", "")
    lines = [
        '{"file_name": "a.png", "caption": "fine"}',
        '{"file_name": "a.png", "caption": }',
        '["a.png", "words"]',
        '{"file_name": "gone.png", "caption": "words"}',
        '{"file_name": "./a.png", "caption": "again"}',
        '{"file_name": "a.png", "captoin": "words"}',
        '{"fle_name": 1, "caption": "words"}',
        '{"file_name": "a.png", "caption": "  "}',
        '{"file_name": "a.png", "caption": "one", "text": "two"}',
        '{"file_name": "a.png", "caption": null}',
        '{"file_name": "../a.png", "caption": "words"}',
        '{"file_name": "x.avi", "caption": "words"}',
        '{"file_name": "a.png", "caption": "words", "mask": "m.png"}',
        json.dumps(row("n" * 5000 + ".png")),
    ]
    make.text("set/metadata.jsonl", "\n".join(lines))
    found = mistakes(tmp_path, "set")
    at = "set/metadata.jsonl"
    shape = '{"file_name": "a.png", "caption": "..."}'
    assert found[:-1] == [
        f"{at}:2: is not JSON (Expecting value at column 35); write {shape} on each line",
        f"{at}:3: is ['a.png', 'words'], not an object; write {shape} on each line",
        f"{at}:4: file_name 'gone.png' does not exist in {tmp_path}/set; correct the name or remove the line",
        f"{at}:5: file_name 'a.png' is also on line 1; keep one",
        f"{at}:6: 'captoin' is not a column; did you mean caption?",
        f"{at}:6: the caption is missing; add one of caption, text, prompt",
        f"{at}:7: 'fle_name' is not a column; did you mean file_name?",
        f"{at}:7: file_name is missing; add it, relative to the folder",
        f"{at}:8: the caption of 'a.png' is blank; write one or remove the line",
        f"{at}:9: caption and text are both captions; keep one",
        f"{at}:10: caption is None, not text",
        f"{at}:11: file_name '../a.png' leaves the folder; move the file into it",
        f"{at}:12: file_name 'x.avi' is not one of gif jpeg jpg mkv mov mp4 png webm webp; convert it",
        f"{at}:13: file_name 'a.png' is also on line 1; keep one",
    ]
    assert found[-1].startswith(f"{at}:14: file_name 'nnn")


def test_wrong_columns_of_a_csv_are_told_once(make, tmp_path):
    make.text("set/metadata.csv", "fle_name,caption\na.png,words\nb.png,words\n")
    assert mistakes(tmp_path, "set") == [
        "set/metadata.csv:1: 'fle_name' is not a column; did you mean file_name?",
        "set/metadata.csv:1: file_name is missing; add it, relative to the folder",
    ]


def test_every_mistake_of_a_csv_is_told_with_its_line(make, tmp_path):
    make.image("set/a.png")
    make.text("set/metadata.csv", "file_name,caption\na.png,red, fox\na.png,\na.png\n")
    more = "put captions with commas in double quotes"
    assert mistakes(tmp_path, "set") == [
        f"set/metadata.csv:2: 2 columns but a row of 3; {more}",
        "set/metadata.csv:3: the caption of 'a.png' is blank; write one or remove the line",
        f"set/metadata.csv:4: 2 columns but a row of 1; {more}",
    ]


def test_missing_and_blank_side_cars_are_named(make, tmp_path):
    make.image("set/a.png")
    make.image("set/b.png")
    make.image("set/c.png")
    make.text("set/b.txt", " \n")
    (tmp_path / "set/c.txt").write_bytes(b"\xe9t\xe9")
    assert mistakes(tmp_path, "set") == [
        "set/a.png: has no caption; write one to set/a.txt or name the file in metadata.jsonl",
        "set/b.txt:1: the caption of 'b.png' is blank; write one",
        "set/c.txt:1: is not UTF-8 (invalid continuation byte); save it as UTF-8",
    ]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_in_another_encoding_is_named(make, tmp_path, name):
    make.path(f"set/{name}").write_bytes(b"file_name,caption\na.png,\xe9t\xe9 noir\n")
    message = rf"set/{re.escape(name)}: is not UTF-8 \(.+\); save it as UTF-8"
    assert re.fullmatch(message, mistakes(tmp_path, "set")[-1])


def test_all_unreadable_files_are_told_at_once_with_their_lines(make, tmp_path):
    make.image("set/good.png")
    make.text("set/empty.png", "")
    half = make.clip("set/half.mp4")
    half.write_bytes(half.read_bytes()[:900])
    make.text("set/metadata.jsonl", rows(row("half.mp4"), row("good.png"), row("empty.png")))
    first, second = mistakes(tmp_path, "set")
    assert first.startswith(f"set/metadata.jsonl:1: {half}: cannot be read as a video (")
    assert second.startswith(f"set/metadata.jsonl:3: {tmp_path}/set/empty.png: cannot be read as a picture (")
    assert first.endswith("); replace it or remove it")
    assert second.endswith("); replace it or remove it")


def test_mistakes_of_all_sources_are_told_at_once(make, tmp_path):
    make.image("a/x.png")
    make.image("b/y.png")
    assert mistakes(tmp_path, "a", "b") == [
        "a/x.png: has no caption; write one to a/x.txt or name the file in metadata.jsonl",
        "b/y.png: has no caption; write one to b/y.txt or name the file in metadata.jsonl",
    ]


def test_sources_that_give_equal_ids_are_named(make, tmp_path):
    for folder in ("a/set", "b/set"):
        make.image(f"{folder}/x.png")
        make.text(f"{folder}/x.txt", "words")
    assert mistakes(tmp_path, "a/set", "b/set") == [
        "data.sources: a/set and b/set both hold set/x.png; rename one, or list it once"
    ]


def test_folders_of_one_name_may_hold_different_files(make, tmp_path):
    for file in ("a/set/x", "b/set/y"):
        make.image(f"{file}.png")
        make.text(f"{file}.txt", "words")
    found = scan([Folder(path=Path("a/set")), Folder(path=Path("b/set"))], tmp_path, Hashes(tmp_path))
    assert [item.id for item in found.items] == ["set/x.png", "set/y.png"]


def test_a_second_scan_opens_no_file_and_one_after_a_change_that_file(make, tmp_path, monkeypatch):
    make.clip("set/a.mp4", frames=9, times=lambda i: i * i)
    make.image("set/b.png")
    make.text("set/metadata.jsonl", rows(row("a.mp4"), row("b.png")))
    opened, probe = [], media.probe
    monkeypatch.setattr(media, "probe", lambda file: (opened.append(file.path.name), probe(file))[1])
    first = list(scanned(tmp_path).items)
    assert sorted(opened) == ["a.mp4", "b.png"]
    assert list(scanned(tmp_path).items) == first
    assert len(opened) == 2
    make.image("set/b.png", height=20)
    assert [item.height for item in scanned(tmp_path).items] == [32, 20]
    assert opened[2:] == ["b.png"]
    scan([Folder(path=Path("set"))], tmp_path, Hashes(tmp_path / "memo", verify=True))
    assert sorted(opened[3:]) == ["a.mp4", "b.png"]


def test_a_file_that_could_not_be_read_is_looked_at_again(make, tmp_path):
    make.text("set/a.png", "")
    make.text("set/a.txt", "words")
    assert one_mistake(tmp_path) == one_mistake(tmp_path)


CONTROLLED = Folder(path=Path("set"), media={"control": "edges"})


def test_columns_name_further_media_of_a_sample(make, tmp_path):
    for name in ("a", "b", "edges/a"):
        make.image(f"set/{name}.png", height=16 if "/" in name else 8, width=24 if "/" in name else 12)
    make.text("set/metadata.csv", "file_name,caption,edges\na.png,words,edges/a.png\nb.png,words,\n")
    found = scan([CONTROLLED], tmp_path, Hashes(tmp_path / "memo"))
    assert [dict(item.media) for item in found.items] == [{"control": "edges/a.png"}, {}]
    assert found.items.open(0, "control").path == tmp_path / "set/edges/a.png"
    assert found.notes == []


def test_every_mistake_of_further_media_is_told_with_its_line(make, tmp_path):
    make.image("set/a.png")
    make.image("set/tall.png", height=20)
    make.animation("set/moves.gif")
    names = ("gone.png", "tall.png", "moves.gif", "../x.png")
    for i in range(len(names)):
        make.image(f"set/{i}.png")
    lines = [{"file_name": f"{i}.png", "caption": "words", "edges": name} for i, name in enumerate(names)]
    make.text("set/metadata.jsonl", rows(*lines, row("a.png")))
    with pytest.raises(UserError) as caught:
        scan([CONTROLLED], tmp_path, Hashes(tmp_path / "memo"))
    at = "set/metadata.jsonl"
    assert str(caught.value).split("\n") == [
        f"{at}:1: edges 'gone.png' does not exist in {tmp_path}/set; correct the name or remove the line",
        f"{at}:4: edges '../x.png' leaves the folder; move the file into it",
        f"{at}:5: edges is missing, which media names",
        f"{at}:2: control 'tall.png' is 12x20, and set/1.png 12x8; bring both to one shape",
        f"{at}:3: control 'moves.gif' has 6 frames, and set/2.png has 1; make them equal",
    ]


def test_a_medium_has_a_name_of_its_own_and_columns_need_a_table(make, tmp_path):
    make.image("set/a.png")
    make.text("set/a.txt", "words")
    with pytest.raises(UserError) as caught:
        scan([Folder(path=Path("set"), media={"pixels": "edges"})], tmp_path, Hashes(tmp_path / "memo"))
    assert str(caught.value).split("\n") == [
        "data.sources: 'pixels' cannot name a medium, every sample has one of its own; rename it",
        "set: holds no metadata.jsonl or metadata.csv, whose columns media names; add one",
    ]
