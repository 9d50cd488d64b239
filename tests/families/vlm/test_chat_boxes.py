"""Boxes and points in texts follow the resizing of their picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_items import PICTURE, WHERE, answer, chat, drawn, encoded, processors, talk, user

from omnitune.data.conversations.conversation import Conversation
from omnitune.data.conversations.options import PATTERNS, Boxes, ChatOptions
from omnitune.errors import UserError
from omnitune.families.vlm.encoder import ConversationEncoder
from omnitune.families.vlm.media import rescale_boxes


@pytest.fixture(scope="module")
def processor(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    return processors(tiny_vlm)


BOX = "<box>(x1,y1),(x2,y2)</box>"
SIZES = [((100, 50), (200, 25))]


def texts(item: Conversation, boxes: Boxes, sizes: list[Any] = SIZES) -> list[str]:
    return [message.text for message in rescale_boxes(item, boxes, sizes)]


@pytest.mark.parametrize(
    ("name", "form", "text", "expected"),
    [
        (BOX, "absolute_xyxy", "<box>(10,20),(100, 50)</box>", "<box>(20,10),(200, 25)</box>"),
        (BOX, "absolute_xyxy", "<|box_start|>(1,8),(2,4)<|box_end|>", "<|box_start|>(2,4),(4,2)<|box_end|>"),
        (
            "bbox_2d",
            "absolute_xyxy",
            '"bbox_2d": [10, 20, 30.5, 40], "n": 10',
            '"bbox_2d": [20, 10, 61.0, 20], "n": 10',
        ),
        ("bbox_2d", "absolute_xywh", '{"bbox_2d": [10, 20, 90, 30]}', '{"bbox_2d": [20, 10, 180, 15]}'),
        ("point_2d", "absolute_xy", '{"point_2d": [10, 20]}', '{"point_2d": [20, 10]}'),
        ("<point x= y=>", "absolute_xy", '<point x="10.5" y="20">10<', '<point x="21.0" y="10">10<'),
        (r"at (\d+)/(\d+)", "absolute_xy", "10 at 10/20, 20 at 30/40", "10 at 20/10, 20 at 60/20"),
        ("bbox_2d", "relative_1000_xyxy", '"bbox_2d": [10, 20, 999, 1000]', '"bbox_2d": [10, 20, 999, 1000]'),
    ],
)
def test_coordinates_follow_the_resizing(name: str, form: Any, text: str, expected: str) -> None:
    item = talk(user("Where?"), answer(text))
    assert texts(item, Boxes(format=form, pattern=name)) == ["Where?", expected]


def test_coordinates_are_of_the_picture_shown_last(tmp_path: Path) -> None:
    one, two = drawn(tmp_path, 100, 50, "one"), drawn(tmp_path, 10, 10, "two")
    boxes = Boxes(format="absolute_xy", pattern=r"\((\d+),(\d+)\)")
    item = talk(user(one, "(10,10)"), answer("(20,20)"), user("(5,5)", two, "(5,5)"), answer("(10,10)"))
    sizes = [((100, 50), (200, 25)), ((10, 10), (30, 30))]
    assert texts(item, boxes, sizes) == ["(20,5)", "(40,10)", "(10,2)(15,15)", "(30,30)"]


@pytest.mark.parametrize(
    ("form", "text", "limits"),
    [
        ("absolute_xyxy", "[0,0,101,1]", "100x50"),
        ("absolute_xyxy", "[0,-1,1,1]", "100x50"),
        ("absolute_xywh", "[60,0,41,1]", "100x50"),
        ("relative_1000_xyxy", "[0,0,1,1001]", "1000x1000"),
    ],
)
def test_coordinates_outside_of_their_picture_are_refused(form: Any, text: str, limits: str) -> None:
    boxes = Boxes(format=form, pattern=r"\[(-?\d+),(-?\d+),(-?\d+),(-?\d+)\]")
    with pytest.raises(UserError) as told:
        texts(talk(user("Where?"), answer(text)), boxes)
    assert str(told.value) == (
        f"{text!r} is outside of its picture of {limits}; correct it, or the format that boxes states"
    )


def test_boxes_are_those_of_the_picture_that_the_model_sees(processor: Any, tmp_path: Path) -> None:
    own = processor("qwen2_5_vl")
    item = talk(user(drawn(tmp_path, 200, 100), "Where?"), answer('{"bbox_2d": [0, 50, 100, 100]}'))
    boxes = Boxes(format="absolute_xyxy", pattern="bbox_2d")
    row = encoded(chat(own, "qwen2_5_vl", boxes=boxes), item)
    _, rows, columns = row.tokens["image_grid_thw"][0].tolist()
    width, height = columns * 14, rows * 14
    assert (width, height) != (200, 100)
    expected = [0, round(height / 2), round(width / 2), height]
    learned = own.tokenizer.decode(row.tokens["labels"][row.tokens["labels"] != -100])
    assert learned == f'{{"bbox_2d": {expected}}}<|im_end|>'


def test_box_outside_names_the_item(processor: Any) -> None:
    boxes = Boxes(format="absolute_xyxy", pattern="bbox_2d")
    item = talk(*PICTURE.messages, user("Where?"), answer('"bbox_2d": [0, 0, 9999, 1]'))
    media = PICTURE.media[0]
    with pytest.raises(UserError) as told:
        chat(processor("qwen2_5_vl"), "qwen2_5_vl", boxes=boxes).encode(item)
    assert str(told.value) == (
        f"{WHERE}: '\"bbox_2d\": [0, 0, 9999, 1]' is outside of its picture of {media.width}x{media.height}; "
        "correct it, or the format that boxes states"
    )


def test_box_before_any_picture_is_refused(tmp_path: Path) -> None:
    item = talk(user("(1,1)"), answer("no"))
    with pytest.raises(UserError, match=r"'\(1,1\)' stands before any picture; show the picture first"):
        texts(item, Boxes(format="absolute_xy", pattern=r"\((\d+),(\d+)\)"), [])


def test_absolute_boxes_are_refused_where_pictures_are_cropped(processor: Any) -> None:
    boxes = Boxes(format="absolute_xyxy", pattern="bbox_2d")
    with pytest.raises(UserError) as told:
        ConversationEncoder(processor("llava"), "llava", ChatOptions(boxes=boxes))
    assert str(told.value) == (
        "boxes.format: absolute_xyxy is for types that see a whole picture in a size of its own "
        "(qwen2_5_vl), llava does not; write the coordinates as relative_1000"
    )


def test_patterns_must_have_a_group_a_number() -> None:
    with pytest.raises(UserError) as told:
        Boxes(format="absolute_xy", pattern="bbox_2d")
    assert str(told.value) == (
        "boxes.pattern: 'bbox_2d' has 4 groups, absolute_xy has 2 numbers; give one group a number, or one "
        "of " + ", ".join(PATTERNS)
    )
    with pytest.raises(UserError, match="'\\(' is no regular expression"):
        Boxes(format="absolute_xy", pattern="(")
