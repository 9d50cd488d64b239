"""Every mistake of an item is told with its file and number, and all of them at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Make

from omnitune.data.conversations.scan import scan
from omnitune.data.conversations.sources import ConversationSource
from omnitune.errors import UserError
from omnitune.files import Hashes


def mistakes(root: Path, *items: Any, **options: Any) -> list[str]:
    (root / "train.json").write_text(json.dumps(items))
    with pytest.raises(UserError) as caught:
        scan([ConversationSource(path=Path("train.json"), **options)], root, Hashes(root / "memo"))
    return str(caught.value).split("\n")


def said(who: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": who, "value": value, **more}


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": [message for message in messages if message is not None], **more}


ASKED, SAID = said("human", "Hi"), said("gpt", "Yes")
SHOWN = said("human", "<image>What?")
GOOD = talk(ASKED, SAID)


TURNS: dict[str, tuple[Any, str]] = {
    "more placeholders than files": (
        talk(said("human", "<image> <image>"), SAID, images=["a.png"]),
        "2 <image> but 1 in images; name one file for each, or write \\<image> for the text itself",
    ),
    "fewer placeholders than files": (
        talk(SHOWN, SAID, images=["a.png", "a.png"]),
        "1 <image> but 2 in images; remove files or add placeholders",
    ),
    "no placeholder": (
        talk(ASKED, SAID, images=["a.png"]),
        "0 <image> but 1 in images; write <image> where each is shown",
    ),
    "no file": (
        talk(SHOWN, SAID),
        "1 <image> but 0 in images; name one file for each, or write \\<image> for the text itself",
    ),
    "a placeholder in an answer": (
        talk(ASKED, said("gpt", "<video>It")),
        "1 <video> but 0 in videos; name one file for each, or write \\<video> for the text itself",
    ),
    "audio": (
        talk(said("human", "<audio>What?"), SAID),
        "message 1: value holds <audio>, but audio is not trained on; remove the item",
    ),
    "unknown role": (
        talk(ASKED, said("bot", "Yes")),
        "message 2: from is 'bot'; choose from human, gpt, observation, function_call, system, "
        "or state other names as tags",
    ),
    "no role": (
        talk({"value": "Hi"}, SAID),
        "message 1: 'from' is missing; add it: one of human, gpt, observation, function_call, system",
    ),
    "an unhashable role": (
        talk(said(["human"], "Hi"), SAID),  # type: ignore[arg-type]
        "message 1: from is ['human']; choose from human, gpt, observation, function_call, system, "
        "or state other names as tags",
    ),
    "no value": (talk({"from": "human"}, SAID), "message 1: 'value' is missing; add it"),
    "a number": (talk(said("human", 5), SAID), "message 1: value is 5, not text; put it in quotes"),
    "unknown key": (
        talk(said("human", "Hi", trains=True), SAID),
        "message 1: 'trains' is not a key of a message; did you mean train?",
    ),
    "a message that is text": (
        talk("Hi", SAID),
        'message 1: is \'Hi\', not an object; write {"from": "human", "value": "..."}',
    ),
    "messages that are text": (
        {"conversations": "Hi"},
        "'conversations' is 'Hi', not a list of messages; correct it",
    ),
    "no messages": (talk(), "'conversations' is empty; add messages"),
    "messages are missing": ({"id": 1}, "'conversations' is missing; add it"),
    "two users": (
        talk(ASKED, ASKED, SAID),
        "message 2: user follows user; join the two, or add what comes between",
    ),
    "two answers": (
        talk(said("system", "Be."), ASKED, SAID, said("function_call", '{"name": "f"}')),
        "message 4: assistant follows assistant; join the two, or add what comes between",
    ),
    "an answer first": (talk(SAID, ASKED, SAID), "message 1: assistant begins; put what user says before it"),
    "a tool first": (
        talk(said("observation", "1"), SAID),
        "message 1: tool begins; put what user says before it",
    ),
    "a tool behind user": (
        talk(ASKED, said("observation", "1"), SAID),
        "message 2: tool follows user; join the two, or add what comes between",
    ),
    "system later": (
        talk(ASKED, said("system", "Be."), SAID),
        "message 2: system stands behind user; it comes first, or not at all",
    ),
    "system alone": (
        talk(said("system", "Be.")),
        "has a system message alone; add a question and its answer",
    ),
    "no answer": (talk(ASKED, SAID, ASKED), "ends with user; add the answer, or remove that message"),
    "two system messages": (
        talk(said("system", "Be."), ASKED, SAID, system="Be brief."),
        "'system' and message 1 are both system messages; keep one",
    ),
    "a system message that shows": (
        talk(said("system", "<image>"), ASKED, SAID, images=["a.png"]),
        "message 1: a system message shows nothing; put what it shows where user speaks",
    ),
    "a blank system column": (
        talk(ASKED, SAID, system=" "),
        "system: what system says is empty; write something or remove it",
    ),
    "empty answer": (
        talk(ASKED, said("gpt", " \n")),
        "message 2: the answer is empty; write one or remove the item",
    ),
    "an answer that only shows": (
        talk(ASKED, said("gpt", "<image>"), images=["a.png"]),
        "message 2: the answer is empty; write one or remove the item",
    ),
    "empty question": (
        talk(said("human", ""), SAID),
        "message 1: what user says is empty; write something or remove it",
    ),
    "half a character": (
        talk(said("human", "Hi \ud83d"), SAID),
        "message 1: value holds '\\ud83d', half a character; write the whole one",
    ),
    "train of a question": (
        talk(said("human", "Hi", train=False), SAID),
        "message 1: train stands in a message of user; only answers are learned: remove it",
    ),
    "weight of a question": (
        talk(said("human", "Hi", weight=0), SAID),
        "message 1: weight stands in a message of user; only answers are learned: remove it",
    ),
    "train is text": (
        talk(ASKED, said("gpt", "Yes", train="no")),
        "message 2: train is 'no'; write true or false",
    ),
    "half a weight": (talk(ASKED, said("gpt", "Yes", weight=0.5)), "message 2: weight is 0.5; write 0 or 1"),
    "train and weight": (
        talk(ASKED, said("gpt", "Yes", train=True, weight=1)),
        "message 2: train and weight say the same thing; keep one",
    ),
    "nothing learned": (
        talk(ASKED, said("gpt", "Yes", train=False)),
        "none of its answers is learned; set train to true in one, or remove the item",
    ),
    "a call that is no JSON": (
        talk(ASKED, said("function_call", "look(")),
        "message 2: the call is not JSON (Expecting value at column 1); correct it there",
    ),
    "a call that is a number": (
        talk(ASKED, said("function_call", "5")),
        'message 2: the call is 5; write {"name": "...", "arguments": {}}',
    ),
    "a call without name": (
        talk(ASKED, said("function_call", '{"arguments": {}}')),
        "message 2: the call has no name; add it",
    ),
    "arguments that are a list": (
        talk(ASKED, said("function_call", '{"name": "f", "arguments": [1]}')),
        "message 2: the arguments of the call are [1], not an object; correct them",
    ),
    "half a character in a call": (
        talk(ASKED, said("function_call", '{"name": "\\ud83d"}')),
        "message 2: the call holds '\\ud83d', half a character; write the whole one",
    ),
    "a question that calls": (
        talk(said("human", "Hi", tool_calls=[{"name": "f"}]), SAID),
        "message 1: tool_calls stand in a message of human; only an answer has them",
    ),
    "tools without name": (
        talk(ASKED, SAID, tools='[{"type": "function"}]'),
        "tools: {'type': 'function'} is no tool; write an object with a name",
    ),
    "tools that are no JSON": (
        talk(ASKED, SAID, tools="[look"),
        "tools is not JSON (Expecting value at column 2); correct it there",
    ),
}


@pytest.mark.parametrize(("item", "message"), TURNS.values(), ids=TURNS.keys())
def test_a_wrong_turn_is_told(make: Make, tmp_path: Path, item: Any, message: str) -> None:
    make.image("a.png")
    assert mistakes(tmp_path, GOOD, item, GOOD) == [f"train.json: item 2: {message}"]


def part(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


PARTS: dict[str, tuple[Any, str]] = {
    "text": ("Hi", 'is \'Hi\', not an object; write {"type": "text", "text": "..."}'),
    "no type": ({"text": "Hi"}, "'type' is missing; add it: one of text, image, video"),
    "unknown type": (part("box"), "type is 'box'; choose from text, image, video"),
    "audio": (part("input_audio"), "is audio, which is not trained on; remove the item"),
    "text is a number": (part("text", text=5), "text is 5, not text"),
    "no text": (part("text"), "'text' is missing; add it"),
    "unknown key": (
        part("image", max_pixels=9, image="a.png"),
        "'max_pixels' is not a key of an image part; remove it",
    ),
    "two names": (part("image", image="a.png", path="a.png"), "image and path both name a file; keep one"),
    "address": (
        part("image", url="https://x.org/a.png"),
        "url 'https://x.org/a.png' is an address; download it and name the file",
    ),
    "data": (
        part("image_url", image_url={"url": "data:image/png;base64,AAAA"}),
        "image_url 'data:image/png;base64,AAAA' holds the file itself; save it and name the file",
    ),
    "an object": (
        part("image", image_url={"url": "a.png", "detail": "low"}),
        "image_url is {'url': 'a.png', 'detail': 'low'}, not a path",
    ),
    "a list of pictures": (part("image", image=["a.png"]), "image is ['a.png'], not a path"),
    "blank": (part("video", video=" "), "video is blank; name a file"),
    "no pictures": (
        part("video", video=[]),
        "video is an empty list; name a clip, or the pictures of one",
    ),
    "a number among pictures": (part("video", video=["a.png", 5]), "video, picture 2 is 5, not a path"),
}


@pytest.mark.parametrize(("stated", "message"), PARTS.values(), ids=PARTS.keys())
def test_a_wrong_part_is_told(make: Make, tmp_path: Path, stated: Any, message: str) -> None:
    make.image("a.png")
    item = {"messages": [{"role": "user", "content": [stated]}, {"role": "assistant", "content": "Yes"}]}
    assert mistakes(tmp_path, item) == [f"train.json: item 1: message 1: part 1: {message}"]


ALPACA: dict[str, tuple[dict[str, Any], str]] = {
    "no output": ({"instruction": "Hi"}, "'output' is missing; add it"),
    "empty output": (
        {"instruction": "Hi", "output": ""},
        "output: the answer is empty; write one or remove the item",
    ),
    "no instruction": (
        {"output": "Yes"},
        "instruction: what user says is empty; write something or remove it",
    ),
    "a number": ({"instruction": 5, "output": "Yes"}, "instruction is 5, not text; put it in quotes"),
    "history of text": (
        {"instruction": "Hi", "output": "Yes", "history": "Hi"},
        "history is 'Hi', not a list of pairs; correct it",
    ),
    "half a pair": (
        {"instruction": "Hi", "output": "Yes", "history": [["Hi"]]},
        'history 1 is [\'Hi\']; write ["question", "answer"]',
    ),
    "a blank answer before": (
        {"instruction": "Hi", "output": "Yes", "history": [["a", "b"], ["Hi", ""]]},
        "history 2: the answer is empty; write one or remove the item",
    ),
    "audio": (
        {"instruction": "<audio>", "output": "Yes"},
        "instruction holds <audio>, but audio is not trained on; remove the item",
    ),
}


@pytest.mark.parametrize(("item", "message"), ALPACA.values(), ids=ALPACA.keys())
def test_a_wrong_pair_is_told(tmp_path: Path, item: dict[str, Any], message: str) -> None:
    good = {"instruction": "Hi", "output": "Yes"}
    assert mistakes(tmp_path, good, item) == [f"train.json: item 2: {message}"]


FILES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"images": "gone.png"},
        "image 'gone.png' does not exist in {root}; correct the name or remove the line",
    ),
    "missing, absolute": (
        {"images": ["/gone.png"]},
        "image '/gone.png' does not exist; correct the name or remove the line",
    ),
    "broken link": (
        {"images": ["way.png"]},
        "image 'way.png' is a link to 'gone.png', which is not there; mend the link or remove it",
    ),
    "another kind": (
        {"images": ["x.bmp"]},
        "image 'x.bmp' is not one of gif jpeg jpg mkv mov mp4 png webm webp; convert it",
    ),
    "a clip": (
        {"images": ["moves.gif"]},
        "image 'moves.gif' is a clip; name a picture, or state it as a video",
    ),
    "a picture": (
        {"videos": ["a.png"]},
        "video 'a.png' is a picture; name a clip, or a list of its pictures",
    ),
    "a clip among pictures": (
        {"videos": [["a.png", "moves.gif"]]},
        "video picture 'moves.gif' is a clip; name it alone, or pictures",
    ),
    "sizes that differ": (
        {"videos": [["a.png", "long.png"]]},
        "video picture 'long.png' is 10000x10, but the first is 12x8; make them equal",
    ),
    "a long picture": (
        {"images": ["long.png"]},
        "image 'long.png' is 10000x10, more than 200 times as long as it is short, which models' processors "
        "refuse; crop it",
    ),
    "an address": (
        {"images": ["http://x.org/a.png"]},
        "images 1 'http://x.org/a.png' is an address; download it and name the file",
    ),
    "a number": ({"images": [5]}, "images 1 is 5, not a path"),
    "half a character": (
        {"images": ["\ud83d.png"]},
        "images 1 holds '\\ud83d', half a character; write the whole one",
    ),
    "both names": (
        {"images": ["a.png"], "image": "a.png"},
        "'images' and 'image' both name files; keep one",
    ),
}


@pytest.mark.parametrize(("files", "message"), FILES.values(), ids=FILES.keys())
def test_a_wrong_file_is_told(make: Make, tmp_path: Path, files: dict[str, Any], message: str) -> None:
    make.image("a.png")
    make.image("long.png", height=10, width=10_000)
    make.text("x.bmp", "")
    make.animation("moves.gif")
    (tmp_path / "way.png").symlink_to("gone.png")
    mark = "<video>" if "videos" in files else "<image>"
    told = message.replace("{root}", str(tmp_path))
    assert mistakes(tmp_path, talk(said("human", mark), SAID, **files)) == [f"train.json: item 1: {told}"]


def test_a_misspelt_key_is_told_beside_what_is_missing(tmp_path: Path) -> None:
    item = talk({"from": "human", "val": "Hi"}, SAID)
    assert mistakes(tmp_path, item) == [
        "train.json: item 1: message 1: 'val' is not a key of a message; did you mean value?",
        "train.json: item 1: message 1: 'value' is missing; add it",
    ]


def test_a_picture_at_the_most_aspect_is_taken(make: Make, tmp_path: Path) -> None:
    make.image("long.png", height=10, width=2000)
    make.image("longer.png", height=2001, width=10)
    shows = [talk(SHOWN, SAID, images=[name]) for name in ("long.png", "longer.png")]
    assert mistakes(tmp_path, *shows) == [
        "train.json: item 2: image 'longer.png' is 10x2001, "
        "more than 200 times as long as it is short, which models' processors refuse; crop it"
    ]


def test_a_picture_that_cannot_be_read_is_told_for_each_item(make: Make, tmp_path: Path) -> None:
    make.text("a.png", "no picture")
    first, second = mistakes(tmp_path, *[talk(SHOWN, SAID, images=["a.png"])] * 2)
    begin = f"image {tmp_path}/a.png: cannot be read as a picture ("
    assert first.startswith(f"train.json: item 1: {begin}")
    assert second.startswith(f"train.json: item 2: {begin}")


def test_every_mistake_of_a_file_is_told(tmp_path: Path) -> None:
    gone = f"image 'gone.png' does not exist in {tmp_path}; correct the name or remove the line"
    wrong = talk(said("human", 5, on=1), said("gpt", ""), images=["gone.png"])
    assert mistakes(tmp_path, talk(SHOWN, SAID, images=["gone.png"]), GOOD, 5, wrong) == [
        "train.json: item 3: is 5, not an object; write one or remove it",
        f"train.json: item 1: {gone}",
        "train.json: item 4: message 1: 'on' is not a key of a message; remove it",
        "train.json: item 4: message 1: value is 5, not text; put it in quotes",
        "train.json: item 4: message 2: the answer is empty; write one or remove the item",
        f"train.json: item 4: {gone}",
    ]


@pytest.mark.parametrize("depth", [101, 500, 900])
def test_what_is_nested_deeply_is_told(tmp_path: Path, depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = {"x": [deep]} if depth < 500 else [deep]
    tool = {"name": "f", "parameters": {"x": deep}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": deep}}]}
    asked = {"role": "user", "content": "Hi"}
    wrong = "is nested more than 100 deep; write it flatter"
    assert mistakes(tmp_path, talk(ASKED, SAID, tools=[tool])) == [f"train.json: item 1: tools {wrong}"]
    assert mistakes(tmp_path, {"messages": [asked, call]}) == [
        f"train.json: item 1: message 2: the call {wrong}"
    ]
