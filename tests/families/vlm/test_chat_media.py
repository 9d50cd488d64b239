"""Pictures and clips of conversations: frames taken, budgets of pixels, coordinates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_items import CLIP, WHERE, answer, chat, clip, drawn, encoded, processors, talk, user
from PIL import Image
from tiny_chats import SHOWS_CLIPS

from omnitune.data.conversations.conversation import Media
from omnitune.data.conversations.options import ChatOptions
from omnitune.data.conversations.tokens import LeftOut
from omnitune.data.media import read_frames
from omnitune.errors import UserError
from omnitune.families.vlm.collate import collate
from omnitune.families.vlm.media import decode, fit_area, nearest, sample_frames, scale_area
from omnitune.testing.tiny_vlm import tiny_types

OPTIONS = ChatOptions()


@pytest.fixture(scope="module")
def processor(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    return processors(tiny_vlm)


# Frames


def film(num_frames: int, fps: float, times: tuple[float, ...] = ()) -> Media:
    return Media("video", (), 64, 48, num_frames, fps, times)


@pytest.mark.parametrize("model_type", SHOWS_CLIPS)
def test_frames_are_those_that_the_published_processor_takes(processor: Any, model_type: str) -> None:
    from transformers.video_utils import VideoMetadata

    own = processor(model_type).video_processor
    for num_frames, fps, stated in ((50, 16.0, None), (48, 24.0, 3.0), (480, 24.0, 1.5), (71, 29.97, None)):
        about = VideoMetadata(num_frames, fps, duration=num_frames / fps)
        rate = stated or getattr(own, "fps", None) or 2.0
        expected = own.sample_frames(metadata=about, fps=rate)
        taken = sample_frames(film(num_frames, fps), ChatOptions(video_fps=stated), own)
        assert list(taken.indices) == [int(i) for i in expected]
        assert (taken.places, taken.total, taken.fps) == (taken.indices, num_frames, fps)


@pytest.mark.parametrize("model_type", SHOWS_CLIPS)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 49, 1000])
def test_any_clip_gives_frames_in_order_and_at_most_so_many(
    processor: Any, model_type: str, num_frames: int
) -> None:
    own = processor(model_type).video_processor
    for fps, stated, most in ((24.0, None, 128), (24.0, 100.0, 7), (0.5, 2.0, 1), (30.0, 0.01, 128)):
        taken = sample_frames(film(num_frames, fps), ChatOptions(video_fps=stated, video_frames=most), own)
        assert 1 <= len(taken.indices) <= most
        assert list(taken.indices) == sorted(taken.indices)
        assert taken.indices[-1] < num_frames


@pytest.mark.parametrize("model_type", SHOWS_CLIPS)
def test_clips_of_variable_rate_are_sampled_by_time(processor: Any, model_type: str) -> None:
    own = processor(model_type).video_processor
    rng = np.random.default_rng(0)
    for _ in range(5):
        times = tuple(np.cumsum([0.0, *rng.choice([1 / 30, 1 / 7, 0.4], 80)]).tolist())
        mean = (len(times) - 1) / times[-1]
        taken = sample_frames(film(len(times), mean, times), OPTIONS, own)
        told = [place / taken.fps for place in taken.places]
        assert told == pytest.approx([times[i] for i in taken.indices])
        constant = sample_frames(film(len(times) * 40, mean * 40), OPTIONS, own)
        wanted = [place / constant.fps for place in dict.fromkeys(constant.places)]
        assert len(told) == len(wanted)
        assert max(abs(a - b) for a, b in zip(told, wanted, strict=True)) <= 0.2 + 1 / 30


def test_the_nearest_frame_is_found() -> None:
    times = (0.0, 1.0, 1.5, 4.0)
    assert [nearest(times, t) for t in (-1, 0.4, 0.6, 1.25, 2.7, 2.8, 9)] == [0, 0, 1, 1, 2, 3, 3]


def test_frames_of_a_clip_are_those_of_its_file(processor: Any) -> None:
    media, own = clip(), processor("qwen2_vl")
    seen = decode(media, ChatOptions(video_fps=24, video_frames=4), own)
    assert len(seen.frames.indices) == 4
    assert (seen.pixels == read_frames(media.files[0].path, seen.frames.indices)).all()
    assert seen.metadata(seen.size) == {
        "total_num_frames": media.num_frames,
        "fps": media.fps,
        "width": media.width,
        "height": media.height,
        "duration": media.num_frames / media.fps,
        "frames_indices": list(seen.frames.indices),
    }


def test_clip_may_be_stated_as_pictures(tmp_path: Path, processor: Any) -> None:
    files, own = (
        tuple(drawn(tmp_path, 40, 30 + i // 4, str(i)).files[0] for i in range(5)),
        processor("qwen2_vl"),
    )
    seen = decode(Media("video", files[:4], 40, 30, 4), ChatOptions(video_frames=2), own)
    assert (seen.frames.indices, seen.frames.fps, seen.pixels.shape) == ((0, 2), 2.0, (2, 30, 40, 3))
    assert seen.frames.seconds_each == 1.0  # as far as they are apart
    with pytest.raises(UserError) as told:
        decode(Media("video", files, 40, 30, 5), OPTIONS, own)
    assert str(told.value) == (
        f"{files[4].name}: is 40x31, the first picture of the clip 40x30; "
        "bring the pictures of a clip to one size"
    )


def test_seconds_of_a_clip_reach_the_model(processor: Any) -> None:
    media = clip()
    for model_type, name in (
        ("qwen2_5_vl", "second_per_grid_ts"),
        ("qwen2_5_omni_thinker", "video_second_per_grid"),
    ):
        row = encoded(chat(processor(model_type), model_type, video_frames=4, video_fps=24), CLIP)
        # Four frames at equal distances, two of them to a moment that the model sees.
        assert row.tokens[name].tolist() == pytest.approx([2 * media.num_frames / media.fps / 4])


def test_an_odd_count_of_pictures_repeats_the_last(processor: Any, tmp_path: Path) -> None:
    files = tuple(drawn(tmp_path, 40, 30, str(i)).files[0] for i in range(3))
    item = talk(user(Media("video", files, 40, 30, 3), "What?"), answer("no"))
    row = encoded(chat(processor("qwen2_vl"), "qwen2_vl"), item)
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


def test_no_size_becomes_longer_in_its_shape() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(2**x) for x in rng.uniform(0, 12, 2))
        new = scale_area((width, height), float(2 ** rng.uniform(-14, 0)))
        assert max(new) / min(new) <= max(width, height) / min(width, height)
        assert new <= (width, height)


@pytest.mark.parametrize("model_type", sorted({*tiny_types()} - {"smolvlm", "mistral3"}))
def test_long_pictures_fit_or_are_left_out(processor: Any, tmp_path: Path, model_type: str) -> None:
    # The processor of mistral3 takes none of these: a side would be 0.
    own = processor(model_type)
    for size in ((20, 3900), (1990, 10)):
        item = talk(user(drawn(tmp_path, *size), "What?"), answer("no"))
        whole = encoded(chat(own, model_type), item)
        for most in (len(whole) - 1, len(whole) // 2, 20):
            made = chat(own, model_type, max_length=most, too_long="shrink").encode(item)
            assert isinstance(made, LeftOut) or len(made) <= most


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
