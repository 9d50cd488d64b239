"""CogVideo's layout of data: lists whose lines belong together."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Make

from omnitune import config
from omnitune.data.captions.item import Item
from omnitune.data.captions.lists import LineLists
from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import Folder
from omnitune.data.sources import Scan
from omnitune.errors import UserError
from omnitune.files import Hashes


def scanned(root: Path, **options: Any) -> Scan:
    return scan([LineLists(path=Path("set"), **options)], root, Hashes(root / "memo"))


def images(found: Scan) -> list[Path]:
    return [found.items.open(i, "first_frame").path for i in range(len(found.items))]


def mistakes(root: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        scanned(root, **options)
    return str(caught.value).split("\n")


@pytest.fixture
def clips(make: Make) -> list[Path]:
    return [make.clip(f"set/videos/{name}.mp4", frames=9) for name in "ab"]


def lists(make: Make, **texts: str) -> None:
    for name, text in {
        "prompts": "a fox\na hen\n",
        "videos": "videos/a.mp4\nvideos/b.mp4\n",
        **texts,
    }.items():
        make.text(f"set/{name}.txt", text)


def test_lines_of_one_number_belong_together(make: Make, tmp_path: Path, clips: list[Path]) -> None:
    lists(make, prompts="\ufeff a fox, red \r\na\u2028hen", videos="videos/a.mp4\n./videos/b.mp4\n\n")
    assert list(scanned(tmp_path).items) == [
        Item("set/videos/a.mp4", "videos/a.mp4", "a fox, red", "set/videos.txt:1", "video", 48, 32, 9, 24.0),
        Item("set/videos/b.mp4", "videos/b.mp4", "a\u2028hen", "set/videos.txt:2", "video", 48, 32, 9, 24.0),
    ]
    assert scanned(tmp_path).notes == []


@pytest.mark.usefixtures("clips")
def test_pictures_that_stand_for_first_frames_are_no_items_of_their_own(make: Make, tmp_path: Path) -> None:
    picture, other = make.image("set/images/a.png"), make.image("other.webp")
    lists(make, images=f"images/a.png\n{other}\n")
    assert images(scanned(tmp_path)) == [picture, other]
    assert [item.media for item in scanned(tmp_path, images=None).items] == [{}, {}]
    make.text("set/same.txt", "images/a.png\nimages/a.png\n")
    assert images(scanned(tmp_path, images=Path("same.txt"))) == [picture, picture]


@pytest.mark.usefixtures("clips")
def test_lists_of_other_names_are_stated(make: Make, tmp_path: Path) -> None:
    lists(make, words="one\n", files="videos/b.mp4\n")
    (item,) = scanned(tmp_path, captions=Path("words.txt"), media=Path("files.txt")).items
    assert (item.caption, item.file, item.where) == ("one", "videos/b.mp4", "set/files.txt:1")


@pytest.mark.usefixtures("clips")
def test_captions_are_in_prompt_txt_if_only_that_is_there(make: Make, tmp_path: Path) -> None:
    lists(make, prompt="one\ntwo\n")
    assert mistakes(tmp_path) == [
        "data.sources: set: holds both prompts.txt and prompt.txt; keep one, or state it as captions"
    ]
    assert scanned(tmp_path, captions=Path("prompts.txt")).items[0].caption == "a fox"
    (tmp_path / "set/prompts.txt").unlink()
    assert [item.caption for item in scanned(tmp_path).items] == ["one", "two"]
    (tmp_path / "set/prompt.txt").unlink()
    assert mistakes(tmp_path) == [
        "data.sources: set: holds neither prompts.txt nor prompt.txt; write one, or state another as captions"
    ]


def test_absolute_paths_within_the_folder_give_the_same_ids(
    make: Make, tmp_path: Path, clips: list[Path]
) -> None:
    outside = make.image("elsewhere/x.png")
    lists(make, videos=f"{clips[0]}\n{outside}\n")
    items = scanned(tmp_path).items
    assert [(item.id, items.open(i).path) for i, item in enumerate(items)] == [
        ("set/videos/a.mp4", clips[0]),
        (f"set/{outside}", outside),
    ]


@pytest.mark.usefixtures("clips")
def test_every_mistake_of_the_lists_is_told_with_its_line(make: Make, tmp_path: Path) -> None:
    make.text("set/x.avi", "")
    (tmp_path / "set/way.mp4").symlink_to("gone.mp4")
    lists(
        make,
        prompts="one\n\nthree\nfour\nfive\nsix\nseven\n",
        videos="videos/a.mp4\nvideos/b.mp4\ngone.mp4\n./videos/a.mp4\nx.avi\n../out.mp4\nway.mp4\n",
    )
    assert mistakes(tmp_path) == [
        "set/prompts.txt:2: is blank; fill it, or remove the line from every list",
        f"set/videos.txt:3: 'gone.mp4' does not exist in {tmp_path}/set; correct the name or remove the line",
        "set/videos.txt:5: 'x.avi' is not one of gif jpeg jpg mkv mov mp4 png webm webp; convert it",
        "set/videos.txt:6: '../out.mp4' leaves the folder; state its absolute path",
        "set/videos.txt:7: 'way.mp4' is a link to 'gone.mp4', which is not there; mend the link or remove it",
        "set/videos.txt:4: 'videos/a.mp4' is also on line 1; keep one",
    ]


@pytest.mark.usefixtures("clips")
def test_every_mistake_of_the_pictures_is_told_with_its_line(make: Make, tmp_path: Path) -> None:
    make.clip("set/videos/c.mp4", frames=9)
    make.animation("set/moves.gif")
    make.text("set/empty.png", "")
    lists(
        make,
        prompts="one\ntwo\nthree\n",
        videos="videos/a.mp4\nvideos/b.mp4\nvideos/c.mp4\n",
        images="videos/a.mp4\nempty.png\nmoves.gif\n",
    )
    film, empty, animation = mistakes(tmp_path)
    assert film == "set/videos.txt:1: first_frame 'videos/a.mp4' is a clip; name a picture"
    assert empty.startswith(
        f"set/videos.txt:2: first_frame {tmp_path}/set/empty.png: cannot be read as a picture ("
    )
    assert animation == "set/videos.txt:3: first_frame 'moves.gif' is a clip; name a picture"
    make.text("set/images.txt", "/gone.png\n\nvideos/a.mp4\n")
    assert mistakes(tmp_path) == [
        "set/images.txt:2: is blank; fill it, or remove the line from every list",
        "set/images.txt:1: '/gone.png' does not exist; correct the name or remove the line",
        "set/videos.txt:3: first_frame 'videos/a.mp4' is a clip; name a picture",
    ]


@pytest.mark.usefixtures("clips")
def test_lists_of_different_length_are_told_with_the_first_line_that_stands_alone(
    make: Make, tmp_path: Path
) -> None:
    lists(make, prompts="one\ntwo\nthree\nfour\n", images="a.png\n")
    more = "images.txt ends before this line; add one there or remove this one"
    assert mistakes(tmp_path)[1:] == [f"set/prompts.txt:2: {more}", f"set/videos.txt:2: {more}"]
    assert mistakes(tmp_path, images=None) == [
        "set/prompts.txt:3: videos.txt ends before this line; add one there or remove this one"
    ]


@pytest.mark.usefixtures("clips")
def test_lists_that_are_absent_empty_or_not_text_are_told_at_once(make: Make, tmp_path: Path) -> None:
    lists(make, prompts=" \n")
    (tmp_path / "set/videos.txt").write_bytes(b"caf\xe9.mp4\n")
    *told, last = mistakes(tmp_path, images=Path("gone.txt"))
    assert told[0] == "set/prompts.txt: has no lines; write one a clip"
    assert told[1] == "set/videos.txt:1: is not UTF-8 (invalid continuation byte); save it as UTF-8"
    assert (
        last == "data.sources: set/gone.txt: is no file; write it, a line a clip, or state another as images"
    )


def test_a_folder_that_is_not_there_and_ids_that_a_folder_gives_too_are_told(
    make: Make, tmp_path: Path, clips: list[Path]
) -> None:
    lists(make)
    for clip in clips:
        clip.with_suffix(".txt").write_text("words")
    make.text("set/metadata.jsonl", '{"file_name": "videos/a.mp4", "caption": "words"}\n')
    sources = [LineLists(path=Path("gone")), LineLists(path=Path("set")), Folder(path=Path("set"))]
    with pytest.raises(UserError) as caught:
        scan(sources, tmp_path, Hashes(tmp_path / "memo"))
    assert str(caught.value).split("\n") == [
        f"data.sources: gone: does not exist (looked for {tmp_path}/gone)",
        "data.sources: set and set both hold set/videos/a.mp4; rename one, or list it once",
    ]


RUN = """\
model: {family: wan, path: models/wan}
trainable: full
data:
  sources:
    - {path: clips}
    - {name: line_lists, path: cog, captions: words.txt, images: null}
  buckets: {frames: [1], sizes: [32x32]}
"""


def test_a_run_states_sources_of_both_kinds(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    run, _ = config.load(file)
    stated = [
        Folder(path=Path("clips")),
        LineLists(path=Path("cog"), captions=Path("words.txt"), images=None),
    ]
    assert run.data.sources == stated
    file.write_text(config.dump(run))
    assert config.load(file)[0].data.sources == stated


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.sources.1.name=lists",
            "data.sources.1.name is 'lists'; choose from folder, line_lists, package.module:Class",
        ),
        ("data.sources.1.image=a.txt", "data.sources.1.image is not an option; did you mean images?"),
        (
            "data.sources.0.captions=a.txt",
            "data.sources.0.captions is not an option here; there is data.sources.captions of line_lists",
        ),
        ("data.sources.1={name: line_lists}", "data.sources.1.path is missing"),
    ],
)
def test_what_is_no_source_is_told(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    with pytest.raises(UserError) as caught:
        config.load(file, [override])
    assert str(caught.value) == f"command line: {message}"


@pytest.mark.usefixtures("clips")
def test_further_lists_name_media_of_the_samples(make: Make, tmp_path: Path) -> None:
    lists(make, controls="videos/b.mp4\nvideos/a.mp4\n")
    found = scanned(tmp_path, lists={"control": Path("controls.txt")})
    assert [dict(item.media) for item in found.items] == [
        {"control": "videos/b.mp4"},
        {"control": "videos/a.mp4"},
    ]
    with pytest.raises(ValueError, match="give that list as images"):
        LineLists(path=Path("set"), lists={"first_frame": Path("controls.txt")})
