"""Conversations of JSON files: what each format says, and what is wrong with those that say it badly."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Make

from omnitune.data.conversations.conversation import Conversation, Media, Message
from omnitune.data.conversations.scan import scan
from omnitune.data.conversations.sources import ConversationSource
from omnitune.data.sources import Scan
from omnitune.errors import UserError
from omnitune.files import File, Hashes

ASSETS = Path(__file__).parents[3] / "omnitune" / "assets"
FROG, FOX = ASSETS / "pictures/train/frog.png", ASSETS / "clips/validation/fox.mp4"
FROG_SHOWN = Media("image", (File(FROG),), 128, 128)


def read(root: Path, path: str = "train.json", **options: Any) -> Scan:
    return scan([ConversationSource(path=Path(path), **options)], root, Hashes(root / "memo"))


def mistakes(root: Path, path: str = "train.json", **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(root, path, **options)
    return str(caught.value).split("\n")


def write(root: Path, *items: Any, path: str = "train.json") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    lines = path.endswith("jsonl")
    text = "".join(json.dumps(item) + "\n" for item in items) if lines else json.dumps(items)
    (root / path).write_text(text)


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    """A sharegpt item whose turns alternate."""
    sides = ("human", "gpt")
    said = [{"from": sides[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": said, **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def answer(content: Any = "A frog.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# Formats

FROGS = (
    Message("system", ("Be brief.",)),
    Message("user", (FROG_SHOWN, "\nWhat?")),
    Message("assistant", ("A frog.",)),
    Message("user", ("Sure?",)),
    Message("assistant", ("Yes.",)),
)
TURNS = ("<image>\nWhat?", "A frog.", "Sure?", "Yes.")
OPENAI = [
    {"role": "system", "content": "Be brief."},
    user(TURNS[0]),
    answer(),
    user(TURNS[2]),
    answer("Yes."),
]
PART = [{"type": "text", "text": "\nWhat?"}]
IMAGE = {"images": [str(FROG)]}


def openai(first: Sequence[Any]) -> dict[str, Any]:
    return chat(OPENAI[0], user(first), *OPENAI[2:])


SAME = {
    "sharegpt": talk(*TURNS, system="Be brief.", **IMAGE),
    "sharegpt with a system message": {
        "conversations": [{"from": "system", "value": "Be brief."}, *talk(*TURNS)["conversations"]],
        **IMAGE,
    },
    "llava": talk(*TURNS, system="Be brief.", image=str(FROG)),
    "sharegpt, null for what is absent": talk(*TURNS, system="Be brief.", tools=None, videos=[], **IMAGE),
    "openai": chat(*OPENAI, **IMAGE),
    "openai under conversations": {"conversations": OPENAI, **IMAGE},
    "openai, system beside": chat(*OPENAI[1:], system="Be brief.", **IMAGE),
    "image": openai([{"type": "image", "image": str(FROG)}, *PART]),
    "image_url": openai([{"type": "image_url", "image_url": {"url": f"file://{FROG}"}}, *PART]),
    "path": openai([{"type": "image", "path": str(FROG), "text": None}, *PART]),
    "url": openai([{"type": "image", "url": str(FROG)}, *PART]),
    "a part for the next file": {**openai([{"type": "image"}, *PART]), **IMAGE},
    "alpaca": {
        "instruction": "Sure?",
        "input": "",
        "output": "Yes.",
        "history": [["<image>\nWhat?", "A frog."]],
        "system": "Be brief.",
        **IMAGE,
    },
}


@pytest.mark.parametrize("item", SAME.values(), ids=SAME.keys())
def test_every_format_gives_the_same_conversation(tmp_path: Path, item: dict[str, Any]) -> None:
    write(tmp_path, item)
    found = read(tmp_path)
    assert found.items == [Conversation("train/1", FROGS, "train.json: item 1")]
    assert found.notes == []


@pytest.mark.parametrize(
    ("format_", "item"),
    [("sharegpt", SAME["sharegpt"]), ("openai", SAME["openai"]), ("alpaca", SAME["alpaca"])],
)
def test_a_stated_format_reads_as_the_found_one(tmp_path: Path, format_: str, item: dict[str, Any]) -> None:
    write(tmp_path, item, path="set/talks.jsonl")
    (found,) = read(tmp_path, "set/talks.jsonl", format=format_).items
    assert found == Conversation("talks/1", FROGS, "set/talks.jsonl:1")


def test_an_input_stands_below_its_instruction(tmp_path: Path) -> None:
    write(tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert [message.text for message in read(tmp_path).items[0].messages] == ["Add.\n1 2", "3"]


def test_keys_and_roles_of_other_names_are_stated(tmp_path: Path) -> None:
    said = [{"who": "q", "says": "<image>\nWhat?"}, {"who": "a", "says": "A frog."}]
    write(tmp_path, {"turns": said, "pictures": str(FROG), "image": "not read", "id": 5})
    columns = {"messages": "turns", "images": "pictures"}
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "q", "assistant_tag": "a"}
    for format_ in ("auto", "sharegpt", "openai"):
        found = read(tmp_path, columns=columns, tags=tags, format=format_)
        assert found.items[0].messages == FROGS[1:3]
        assert found.notes == ["train.json: keys that nothing reads: id, image"]
    write(tmp_path, {"q": "<image>\nWhat?", "a": "A frog.", "pictures": [str(FROG)]})
    columns = {"prompt": "q", "response": "a", "images": "pictures"}
    assert read(tmp_path, columns=columns).items[0].messages == FROGS[1:3]


def test_placeholders_take_files_in_the_order_of_all_turns(make: Make, tmp_path: Path) -> None:
    pictures = [make.image(f"media/{name}.png", height=8 + i) for i, name in enumerate("abc")]
    clip = make.clip("media/d.mp4", frames=9)
    item = talk(
        "<image>, <image><video> what?", "As in <image>", images=["a.png", "b.png", "c.png"], videos="d.mp4"
    )
    write(tmp_path, item)
    (found,) = read(tmp_path, media=Path("media")).items
    a, b, c = (Media("image", (File(path),), 12, 8 + i) for i, path in enumerate(pictures))
    d = Media("video", (File(clip),), 48, 32, 9, 24.0)
    assert [message.parts for message in found.messages] == [(a, ", ", b, d, " what?"), ("As in ", c)]
    assert list(found.media) == [a, b, d, c]


def test_a_clip_may_be_a_list_of_pictures(make: Make, tmp_path: Path) -> None:
    frames = [make.image(f"{name}.png") for name in "ab"]
    write(tmp_path, talk("<video>What?", "It.", videos=[["a.png", "b.png"]]), path="columns.json")
    part = {"type": "video", "video": ["a.png", "b.png"]}
    write(tmp_path, chat(user([part]), answer("It.")), path="parts.json")
    for path in ("columns.json", "parts.json"):
        (found,) = read(tmp_path, path).items
        assert list(found.media) == [Media("video", tuple(map(File, frames)), 12, 8, 2, 0.0)]


def test_bundled_clips_are_probed(tmp_path: Path) -> None:
    write(tmp_path, chat(user([{"type": "video_url", "video_url": str(FOX)}]), answer()))
    (shown,) = read(tmp_path).items[0].media
    assert (shown.kind, shown.files, shown.width, shown.height) == ("video", (File(FOX),), 128, 128)
    assert shown.num_frames > 1
    assert shown.fps > 0


TOOL = {"name": "look", "parameters": {}}
CALL = {"name": "look", "arguments": {"at": "<image>"}}
OPENAI_CALL = {
    "id": "1",
    "type": "function",
    "function": {**CALL, "arguments": json.dumps(CALL["arguments"])},
}


def test_calls_and_what_tools_give_are_messages(tmp_path: Path) -> None:
    said = [("human", "Hi"), ("function_call", json.dumps(CALL)), ("observation", "[]"), ("gpt", "No.")]
    sharegpt = {"conversations": [{"from": who, "value": value} for who, value in said]}
    write(tmp_path, {**sharegpt, "tools": json.dumps([TOOL])})
    expected = (
        Message("user", ("Hi",)),
        Message("assistant", (), None, (CALL,)),
        Message("tool", ("[]",)),
        Message("assistant", ("No.",)),
    )
    assert read(tmp_path).items == [Conversation("train/1", expected, "train.json: item 1", (TOOL,))]
    calls = answer(None, tool_calls=[OPENAI_CALL])
    given = {"role": "tool", "content": "[]", "tool_call_id": "1"}
    write(tmp_path, chat(user("Hi"), calls, given, answer("No."), tools=[TOOL]))
    found = read(tmp_path)
    assert found.items[0].messages == expected
    assert found.notes == ["train.json: keys that nothing reads: tool_call_id"]
    write(tmp_path, chat(user("Hi"), answer("", tool_calls=[OPENAI_CALL] * 2), given, given, answer("No.")))
    found = read(tmp_path).items[0].messages
    assert found[1].tool_calls == (CALL, CALL)
    assert found[2:] == (expected[2], *expected[2:])


def test_answers_say_whether_they_are_learned(tmp_path: Path) -> None:
    stated: list[dict[str, Any]] = [{"train": False}, {"weight": 0}, {"weight": 1.0}, {"train": True}, {}]
    messages = [message for more in stated for message in (user("Hi"), answer(**more))]
    write(tmp_path, chat(*messages))
    found = [message.train for message in read(tmp_path).items[0].messages]
    assert found == [None, False, None, False, None, True, None, True, None, None]


# Files, sources


def test_lines_keep_their_numbers_and_any_character(tmp_path: Path) -> None:
    text = (
        "\ufeff"
        + json.dumps(talk("Hi\u2028", "Yes"), ensure_ascii=False)
        + "\n\n"
        + json.dumps(talk("a", "b"))
    )
    (tmp_path / "train.jsonl").write_text(text)
    found = [(item.id, item.where, item.messages[0].text) for item in read(tmp_path, "train.jsonl").items]
    assert found == [("train/1", "train.jsonl:1", "Hi\u2028"), ("train/3", "train.jsonl:3", "a")]


def test_equal_items_are_two(tmp_path: Path) -> None:
    write(tmp_path, talk("a", "b"), talk("a", "b"))
    assert [item.id for item in read(tmp_path).items] == ["train/1", "train/2"]


def test_a_part_of_a_file_is_spread_over_it(tmp_path: Path) -> None:
    write(tmp_path, *(talk("a", "b") for _ in range(10)))
    found = read(tmp_path, num_samples=4)
    assert [item.id for item in found.items] == ["train/1", "train/3", "train/6", "train/8"]
    assert found.notes == ["train.json: 4 of 10 items are read (num_samples)"]
    assert mistakes(tmp_path, num_samples=11) == [
        "data.sources: train.json: num_samples is 11, but there are 10 items; lower it"
    ]


def test_sources_with_the_same_ids_are_told(tmp_path: Path) -> None:
    for path in ("a/train.json", "b/train.jsonl", "c/other.json"):
        write(tmp_path, talk("a", "b"), path=path)
    sources = [ConversationSource(path=Path(p)) for p in ("a/train.json", "b/train.jsonl", "c/other.json")]
    with pytest.raises(UserError) as caught:
        scan(sources, tmp_path, Hashes(tmp_path / "memo"))
    assert str(caught.value) == (
        "data.sources: a/train.json and b/train.jsonl both hold train/1; rename one, or list it once"
    )
    found = scan(sources[1:], tmp_path, Hashes(tmp_path / "memo"))
    assert [item.id for item in found.items] == ["train/1", "other/1"]


def test_files_that_are_none_are_told(make: Make, tmp_path: Path) -> None:
    make.text("train.csv", "")
    make.text("folder/x", "")
    (tmp_path / "way.json").symlink_to("gone.json")
    told = {
        "gone.json": f"does not exist (looked for {tmp_path}/gone.json)",
        "way.json": "is a link to 'gone.json', which is not there; mend the link or remove it",
        "train.csv": "is no .json or .jsonl file; convert it",
        "folder": "is a folder without dataset_info.json; name a .json or .jsonl file in it",
    }
    sources = [ConversationSource(path=Path(path)) for path in told]
    with pytest.raises(UserError) as caught:
        scan(sources, tmp_path, Hashes(tmp_path / "memo"))
    assert str(caught.value).split("\n") == [f"data.sources: {path}: {line}" for path, line in told.items()]
    write(tmp_path, talk("a", "b"))
    assert mistakes(tmp_path, media=Path("gone")) == [
        f"data.sources: train.json: media gone is no folder (looked for {tmp_path}/gone)"
    ]


TEXTS = {
    "": "train.json: is empty; write JSON into it",
    "[]": "train.json: holds no items; write at least one",
    '{"a": 1}': "train.json: is {'a': 1}, not a list; write [ before it and ] behind it",
    '[\n {"a": }\n]': "train.json:2: is not JSON (Expecting value at column 8); correct it there",
    "{}\n{}\n": (
        "train.json:2: is not JSON (Extra data at column 1); rename it to train.jsonl if each line is an item"
    ),
    "[" * 100_000: "train.json:1: is not JSON (Nested too deeply at column 1); correct it there",
    "[1]": "train.json: item 1: is 1, not an object; write one or remove it",
}


@pytest.mark.parametrize(("text", "message"), TEXTS.items(), ids=range(len(TEXTS)))
def test_what_is_no_list_of_items_is_told(make: Make, tmp_path: Path, text: str, message: str) -> None:
    make.text("train.json", text)
    assert mistakes(tmp_path) == [message]


def test_what_is_no_list_of_lines_is_told(make: Make, tmp_path: Path) -> None:
    make.text("train.jsonl", '{"conversations": }\n[]\n\n' + json.dumps(talk("a")))
    assert mistakes(tmp_path, "train.jsonl") == [
        "train.jsonl:1: is not JSON (Expecting value at column 19); write one object on each line",
        "train.jsonl:2: is [], not an object; write one object on each line",
        "train.jsonl:4: ends with user; add the answer, or remove that message",
    ]
    make.text("train.jsonl", "\n")
    assert mistakes(tmp_path, "train.jsonl") == ["train.jsonl: holds no items; write at least one"]
    (tmp_path / "train.json").write_bytes(b'[\n"caf\xe9"]')
    assert mistakes(tmp_path) == ["train.json:2: is not UTF-8 (invalid continuation byte); save it as UTF-8"]


# Columns and tags

NAMES: list[tuple[dict[str, Any], str]] = [
    ({"columns": {"imges": "x"}}, "columns.imges is not known; did you mean images?"),
    (
        {"format": "openai", "columns": {"x": "y"}},
        "columns.x is not known; choose from images, messages, system, tools, videos",
    ),
    ({"columns": {"audios": "x"}}, "columns.audios: audio is not trained on; remove it"),
    ({"columns": {"chosen": "x"}}, "columns.chosen: preferences are not trained on; remove it"),
    ({"tags": {"rol_tag": "x"}}, "tags.rol_tag is not known; did you mean role_tag?"),
    ({"tags": {"user_tag": " "}}, "tags.user_tag is blank; write the name, or remove it"),
    ({"tags": {"user_tag": "gpt"}}, "tags.user_tag and tags.assistant_tag are both 'gpt'; correct one"),
    ({"tags": {"role_tag": "value"}}, "tags.role_tag and tags.content_tag are both 'value'; correct one"),
    (
        {"columns": {"images": "x", "videos": "x"}},
        "columns.images and columns.videos are both 'x'; correct one",
    ),
    (
        {"format": "alpaca", "tags": {"role_tag": "x"}},
        "tags.role_tag has no effect on alpaca items; remove it, or state another format",
    ),
    (
        {"columns": {"images": "pics"}},
        "columns.images is 'pics', which no item has; correct it or remove it",
    ),
    (
        {"format": "openai", "columns": {"prompt": "x"}},
        "columns.prompt has no effect on openai items; remove it, or state another format",
    ),
    (
        {"format": "alpaca"},
        "no item has 'instruction' or 'input', as alpaca items do; "
        "state its name as columns.prompt, or another format",
    ),
    ({"dataset": "pets"}, "dataset has no effect, this is no dataset_info.json; remove it"),
]


@pytest.mark.parametrize(("options", "message"), NAMES, ids=range(len(NAMES)))
def test_wrong_names_are_told(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path, talk("a", "b"))
    assert mistakes(tmp_path, **options)[0] == f"data.sources: train.json: {message}"


def test_a_file_of_no_known_format_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"text": "a"})
    assert mistakes(tmp_path) == [
        "train.json: item 1: has none of messages, conversations and instruction; "
        "state the format, and other names as columns"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be 1 or more, not 0"),
        ({"dataset": []}, "dataset names nothing; name a data set, or remove it"),
        ({"dataset": " ,"}, "dataset names nothing; name a data set, or remove it"),
    ],
)
def test_options_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ConversationSource(path=Path("train.json"), **options)
    assert str(caught.value) == message


def test_reading_takes_the_pictures_that_are_remembered(make: Make, tmp_path: Path) -> None:
    picture = make.image("a.png")
    write(tmp_path, *(talk("<image>a", "b", images=["a.png"]) for _ in range(3)))
    items = read(tmp_path).items
    stat = picture.stat()
    picture.write_bytes(b"x" * stat.st_size)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read(tmp_path).items == items
