"""Pictures and clips of conversations: frames taken, budgets of pixels, coordinates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_items import CLIP, WHERE, answer, chat, clip, drawn, encoded, processors, talk, user
from PIL import Image

from omnitune.data.conversations.conversation import Media
from omnitune.data.conversations.options import ChatOptions
from omnitune.data.conversations.tokens import LeftOut
from omnitune.data.media import read_frames
from omnitune.errors import UserError
from omnitune.families.vlm.collate import collate
from omnitune.families.vlm.media import decode, fit_area, frame_indices, scale_area

OPTIONS = ChatOptions()


@pytest.fixture(scope="module")
def processor(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    return processors(tiny_vlm)


# Frames


@pytest.mark.parametrize(
    ("num_frames", "fps", "options", "expected"),
    [
        (48, 24.0, ChatOptions(), (0, 15, 31, 47)),  # two seconds at two frames a second
        (48, 24.0, ChatOptions(video_fps=24), tuple(range(48))),
        (48, 24.0, ChatOptions(video_fps=100), tuple(range(48))),  # no frame twice
        (480, 24.0, ChatOptions(video_frames=3), (0, 239, 479)),
        (71, 24.0, ChatOptions(video_fps=1), (0, 70)),  # 2.96 seconds: the part of a frame is not taken
        (5, 24.0, ChatOptions(), (0,)),  # one at least
    ],
)
def test_frames_are_spread_from_the_first_to_the_last(
    num_frames: int, fps: float, options: ChatOptions, expected: tuple[int, ...]
) -> None:
    assert frame_indices(num_frames, fps, options) == expected
    assert expected == tuple(np.linspace(0, num_frames - 1, len(expected)).astype(int).tolist())


def test_frames_of_a_clip_are_those_of_its_file() -> None:
    media = clip()
    seen = decode(media, ChatOptions(video_frames=3))
    assert seen.indices == frame_indices(media.num_frames, media.fps, ChatOptions(video_frames=3))
    assert len(seen.indices) > 1
    assert (seen.pixels == read_frames(media.files[0].path, seen.indices)).all()
    assert seen.metadata(seen.size) == {
        "total_num_frames": media.num_frames,
        "fps": media.fps,
        "width": media.width,
        "height": media.height,
        "duration": media.num_frames / media.fps,
        "frames_indices": list(seen.indices),
    }


def test_clip_may_be_stated_as_pictures(tmp_path: Path) -> None:
    files = tuple(drawn(tmp_path, 40, 30 + i // 3, str(i)).files[0] for i in range(4))
    seen = decode(Media("video", files[:3], 40, 30, 3), ChatOptions(video_frames=2))
    assert (seen.indices, seen.fps, seen.pixels.shape) == ((0, 2), 2.0, (2, 30, 40, 3))
    with pytest.raises(UserError) as told:
        decode(Media("video", files, 40, 30, 4), OPTIONS)
    assert str(told.value) == (
        f"{files[3].name}: is 40x31, the first picture of the clip 40x30; "
        "bring the pictures of a clip to one size"
    )


def test_seconds_of_a_clip_reach_the_model(processor: Any) -> None:
    media = clip()
    for model_type, name in (
        ("qwen2_5_vl", "second_per_grid_ts"),
        ("qwen2_5_omni_thinker", "video_second_per_grid"),
    ):
        row = encoded(chat(processor(model_type), model_type, video_frames=4, video_fps=24), CLIP)
        # Four frames spread over the clip, two of them to a moment that the model sees.
        assert row.tokens[name].tolist() == pytest.approx([2 * media.num_frames / media.fps / 4])


def test_an_odd_count_of_frames_repeats_the_last(processor: Any) -> None:
    row = encoded(chat(processor("qwen2_vl"), "qwen2_vl", video_frames=3, video_fps=24), CLIP)
    assert row.tokens["video_grid_thw"][0, 0] == 2


def test_clips_are_refused_by_types_of_pictures(processor: Any) -> None:
    with pytest.raises(UserError) as told:
        chat(processor("llava"), "llava").encode(CLIP)
    assert str(told.value) == f"{WHERE}: shows a clip, and llava takes pictures alone; remove the item"


def test_clips_of_other_lengths_cannot_share_a_batch_where_frames_are_an_axis(processor: Any) -> None:
    own = processor("video_llava")
    rows = [encoded(chat(own, "video_llava", video_frames=n, video_fps=24), CLIP) for n in (2, 3)]
    with pytest.raises(UserError, match=r"clips of \[2, 3\] frames cannot share a batch with this model"):
        collate([{**row.tokens, **row.media} for row in rows], 0)


# Budgets of pixels


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((1024, 768), None, (1024, 768)),
        ((1024, 768), (1, 1024 * 768), (1024, 768)),
        ((1024, 768), (1, 512 * 384), (512, 384)),
        ((100, 10), (1, 500), (70, 7)),
        ((10, 20), (800, 10_000), (20, 40)),
        ((10, 20), (801, 10_000), (21, 41)),  # no less than was asked for
    ],
)
def test_sizes_are_brought_within_a_budget(
    size: tuple[int, int], limits: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    assert fit_area(size, limits) == expected


def test_areas_are_scaled_to_at_most_their_share() -> None:
    assert scale_area((640, 480), 0.25) == (320, 240)
    assert scale_area((7, 5), 0.5) == (4, 3)
    assert scale_area((1000, 2), 1e-6) == (1, 1)


def test_processor_sees_the_resized_picture(processor: Any, tmp_path: Path) -> None:
    own = processor("qwen2_vl")
    item = talk(user(drawn(tmp_path, 112, 56), "What?"), answer("no"))
    row = encoded(chat(own, "qwen2_vl", image_pixels=(1, 56 * 28)), item)
    with Image.open(item.media[0].files[0].path) as image:
        small = image.convert("RGB").resize((56, 28), Image.Resampling.BICUBIC)
    expected = own.image_processor(images=[small], return_tensors="pt")
    assert row.tokens["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist() == [[1, 2, 4]]
    assert torch.equal(row.media["pixel_values"], expected["pixel_values"])


def test_pictures_shrink_until_the_row_fits(processor: Any, tmp_path: Path) -> None:
    own = processor("qwen2_vl")
    item = talk(user(drawn(tmp_path, 84, 56), "What?"), answer("no"))
    whole = encoded(chat(own, "qwen2_vl"), item)
    assert whole.tokens["image_grid_thw"].tolist() == [[1, 4, 6]]  # six tokens
    row = encoded(chat(own, "qwen2_vl", max_length=len(whole) - 2, too_long="shrink"), item)
    assert len(row) <= len(whole) - 2
    assert (row.tokens["input_ids"] == own.image_token_id).sum() == row.tokens["image_grid_thw"].prod() // 4
    assert (row.tokens["labels"] != -100).sum() == (whole.tokens["labels"] != -100).sum()
    before, after = row.shrunk["drawn.png"]
    assert before == (84, 56)
    assert after < before
    assert whole.shrunk == {}


def test_item_that_never_fits_is_dropped(processor: Any, tmp_path: Path) -> None:
    item = talk(user(drawn(tmp_path, 84, 56), "What?"), answer("no"))
    own = processor("qwen2_vl")
    length = len(encoded(chat(own, "qwen2_vl"), item))
    assert chat(own, "qwen2_vl", max_length=20, too_long="shrink").encode(item) == LeftOut(
        f"{WHERE}: {length} tokens, and max_length is 20; {length - 5} with the smallest pictures"
    )
    own = processor("llava")
    length = len(encoded(chat(own, "llava"), item))
    assert chat(own, "llava", max_length=10, too_long="shrink").encode(item) == LeftOut(
        f"{WHERE}: {length} tokens, and max_length is 10; at any size"
    )


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"max_length": 0}, "max_length: 0 is less than 1"),
        ({"video_frames": 0}, "video_frames: 0 is less than 1"),
        ({"video_fps": 0.0}, "video_fps: 0.0 is not above 0"),
        (
            {"image_pixels": (9, 4)},
            "image_pixels: [9, 4] is not the least and the most pixels; at least 1 each",
        ),
    ],
)
def test_impossible_options_are_refused(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as told:
        ChatOptions(**stated)
    assert str(told.value) == message
