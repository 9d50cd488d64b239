import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnitune.data.captions.crops import Clips, load_pixels, num_frames_at, place, view
from omnitune.data.captions.item import Item
from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import Folder
from omnitune.data.sizes import Bucket
from omnitune.data.view import Crop, View
from omnitune.errors import UserError
from omnitune.files import File, Hashes

ONE, FIVE, NINE = Bucket(1, 32, 48), Bucket(5, 32, 48), Bucket(9, 32, 48)


class Fixed:
    """Gives the same number for every purpose, and remembers the purposes."""

    def __init__(self, number=0.0):
        self.number, self.purposes = number, []

    def __call__(self, purpose):
        self.purposes.append(purpose)
        return self.number


def clip(frames, fps=24.0, name="a", width=48, height=32):
    return Item(f"set/{name}", name, "words", f"set/{name}.txt", "video", width, height, frames, fps)


def picture(name="p", width=48, height=32):
    return Item(f"set/{name}", name, "words", f"set/{name}.txt", "image", width, height, 1)


def indices(item, frames, draw=None, **options):
    bucket = Bucket(frames, item.height, item.width)
    return list(view(item, bucket, Clips(**options), draw or Fixed()).indices)


def test_the_own_rate_shows_every_frame():
    assert indices(clip(9), 5) == [0, 1, 2, 3, 4]


def test_a_lower_rate_shows_the_frame_nearest_in_time():
    assert indices(clip(40, fps=24.0), 5, fps=8) == [0, 3, 6, 9, 12]
    assert indices(clip(40, fps=25.0), 6, fps=10) == [0, 3, 5, 8, 10, 13]
    assert indices(clip(40, fps=24.0), 7, fps=16) == [0, 2, 3, 5, 6, 8, 9]


def test_a_higher_rate_shows_frames_again():
    assert indices(clip(4, fps=12.0), 7, fps=24) == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("source", [12.0, 23.976, 24.0, 25.0, 29.97, 30000 / 1001, 50.0, 60.0])
@pytest.mark.parametrize("fps", [None, 8.0, 12.0, 16.0, 24.0, 30.0])
def test_a_clip_gives_exactly_the_frames_whose_nearest_lies_within(source, fps):
    for frames in range(1, 60):
        item = clip(frames, source)
        count = num_frames_at(item, fps)
        shown = indices(item, count, fps=fps)
        assert len(shown) == count
        assert shown[0] == 0
        assert shown == sorted(shown)
        assert shown[-1] <= frames - 1
        longer = indices(replace(item, num_frames=1000), count + 1, fps=fps)
        assert longer[-1] > frames - 1, "one more would have fitted"


def uneven(times):
    """A clip with a frame at each of these seconds."""
    mean = (len(times) - 1) / times[-1]
    return replace(clip(len(times), mean), times=tuple(times))


def test_a_clip_of_variable_rate_is_sampled_by_the_times_of_its_frames():
    # Ten frames in a second, then two in each: a picture that is held.
    item = uneven([k / 10 for k in range(10)] + [1.0, 1.5, 2.0, 2.5, 3.0])
    assert num_frames_at(item, 2) == 7
    assert indices(item, 7, fps=2) == [0, 5, 10, 11, 12, 13, 14]
    assert indices(item, 9, fps=4) == [0, 3, 5, 8, 10, 11, 11, 12, 12]
    assert indices(item, 3, fps=2, window="random", draw=Fixed(0.999)) == [12, 13, 14]
    assert indices(item, 9, fps=2, short="hold") == [0, 5, 10, 11, 12, 13, 14, 14, 14]


@pytest.mark.parametrize("fps", [5.0, 8.0, 10.0, 24.0, 30.0])
def test_times_of_a_fixed_rate_give_what_the_rate_gives(fps):
    for frames in range(2, 60):
        plain, timed = clip(frames, 16.0), uneven([k / 16 for k in range(frames)])
        count = num_frames_at(plain, fps)
        assert num_frames_at(timed, fps) == count
        for part in range(1, count + 1):
            last = {"window": "random", "draw": Fixed(0.999)}
            assert indices(timed, part, fps=fps) == indices(plain, part, fps=fps)
            assert indices(timed, part, fps=fps, **last) == indices(plain, part, fps=fps, **last)


def test_clips_of_variable_rate_without_a_rate_to_show_are_noted():
    item = uneven([0.0, 0.1, 0.2, 0.3, 3.0])
    assert place([item], [FIVE], Clips()).notes == [
        "1 clip is of variable frame rate, shown frame by frame; state data.fps to pick frames by time: set/a"
    ]
    assert place([item], [FIVE], Clips(fps=1.0, short="hold")).notes[0].startswith("1 clip is too short")


def test_windows_lie_where_they_are_asked_to():
    assert indices(clip(20), 5, window="head") == [0, 1, 2, 3, 4]
    assert indices(clip(20), 5, window="middle") == [7, 8, 9, 10, 11]
    assert indices(clip(20), 5, Fixed(0.0), window="random") == [0, 1, 2, 3, 4]
    assert indices(clip(20), 5, Fixed(0.999), window="random") == [15, 16, 17, 18, 19]
    assert indices(clip(40, fps=24.0), 5, Fixed(0.999), window="random", fps=8) == [27, 30, 33, 36, 39]


def test_random_windows_are_equally_likely():
    starts = [indices(clip(7), 5, Fixed((k + 0.5) / 30), window="random")[0] for k in range(30)]
    assert [starts.count(start) for start in range(3)] == [10, 10, 10]


def test_short_clips_loop_or_hold():
    assert indices(clip(3), 8, short="loop") == [0, 1, 2, 0, 1, 2, 0, 1]
    assert indices(clip(3), 8, short="hold") == [0, 1, 2, 2, 2, 2, 2, 2]
    assert indices(clip(9, fps=24.0), 5, short="loop", fps=8) == [0, 3, 6, 0, 3]


def test_only_random_choices_draw():
    draw = Fixed(0.5)
    view(clip(20), FIVE, Clips(), draw)
    assert draw.purposes == []
    view(clip(20), FIVE, Clips(window="random", crop="random"), draw)
    assert sorted(draw.purposes) == ["crop_left", "crop_top", "window"]


@pytest.mark.parametrize(
    ("width", "height", "resize", "top", "left"),
    [
        (48, 32, (32, 48), 0, 0),
        (96, 64, (32, 48), 0, 0),
        (200, 100, (32, 64), 0, 8),
        (100, 100, (48, 48), 8, 0),
        (10, 1000, (4800, 48), 2384, 0),
        (7, 5, (34, 48), 1, 0),
        (101, 67, (32, 48), 0, 0),
    ],
)
def test_frames_cover_the_bucket_and_are_cut_in_the_middle(width, height, resize, top, left):
    shown = view(picture(width=width, height=height), ONE, Clips(), Fixed())
    assert shown == View((0,), resize, Crop(top, left, 32, 48))


def test_random_crops_reach_both_edges():
    wide = picture(width=200, height=100)
    lefts = [view(wide, ONE, Clips(crop="random"), Fixed(u)).crop.left for u in (0.0, 0.5, 0.999)]
    assert lefts == [0, 8, 16]


def test_keys_are_equal_exactly_for_equal_views():
    one = view(clip(20), FIVE, Clips(), Fixed())
    same = view(clip(30), FIVE, Clips(), Fixed())
    other = view(clip(20), FIVE, Clips(window="middle"), Fixed())
    assert one == same
    assert one.key() == same.key()
    assert hash(one) == hash(same)
    assert one.key() != other.key()
    assert json.loads(one.key()) == {
        "crop": {"height": 32, "left": 0, "top": 0, "width": 48},
        "filter": "lanczos",
        "indices": [0, 1, 2, 3, 4],
        "resize": [32, 48],
    }


def test_a_clip_goes_to_the_most_frames_that_it_fills():
    items = [clip(20, name="long"), clip(8, name="middling"), clip(5, name="just"), picture()]
    placement = place(items, [ONE, FIVE, NINE], Clips())
    assert placement.buckets == [NINE, FIVE, FIVE, ONE]
    assert placement.notes == []


def test_the_target_rate_decides_what_a_clip_fills():
    (bucket,) = place([clip(20, fps=24.0)], [ONE, FIVE, NINE], Clips(fps=8)).buckets
    assert bucket == FIVE


def error(items, buckets, clips):
    with pytest.raises(UserError) as caught:
        place(items, buckets, clips)
    return str(caught.value).split("\n")


def test_all_short_clips_are_listed_with_the_ways_out():
    items = [clip(4, name="x"), clip(9, name="y"), clip(12, 24.0, "z")]
    assert error(items, [ONE, FIVE, NINE], Clips(fps=8)) == [
        "data.short: error: 3 clips are too short for data.buckets.frames; "
        "set it to skip, loop, hold or shorter, or put a smaller count into data.buckets.frames:",
        "  set/x.txt: set/x: 2 of the 5 frames needed at 8 fps",
        "  set/y.txt: set/y: 3 of the 5 frames needed at 8 fps",
        "  set/z.txt: set/z: 4 of the 5 frames needed at 8 fps",
    ]


def test_short_clips_are_skipped_visibly():
    items = [clip(4, name="x"), clip(9, name="y")]
    placement = place(items, [ONE, FIVE], Clips(short="skip"))
    assert placement.buckets == [None, FIVE]
    reason = "4 of the 5 frames needed at 24 fps"
    assert placement.notes == [f"1 clip is too short and left out (data.short: skip): set/x: {reason}"]


@pytest.mark.parametrize(
    ("short", "bucket", "done"),
    [
        ("loop", FIVE, "shown from the start again"),
        ("hold", FIVE, "held at the last frame"),
        ("shorter", ONE, "shown as one frame"),
    ],
)
def test_short_clips_are_placed_as_asked_and_visibly(short, bucket, done):
    placement = place([clip(4)], [ONE, FIVE, NINE], Clips(short=short))
    assert placement.buckets == [bucket]
    assert placement.notes == [
        f"1 clip is too short and {done} (data.short: {short}): set/a: 4 of the 5 frames needed at 24 fps"
    ]


def test_shorter_needs_a_bucket_of_one_frame():
    assert error([clip(4)], [FIVE], Clips(short="shorter")) == [
        "data.short: shorter: 1 clip is too short for data.buckets.frames; "
        "add 1 to data.buckets.frames for `shorter`, or set it to skip, loop or hold:",
        "  set/a.txt: set/a: 4 of the 5 frames needed at 24 fps",
    ]


def test_pictures_need_a_bucket_of_one_frame():
    assert error([picture("p"), clip(9), picture("q"), clip(1)], [FIVE, NINE], Clips()) == [
        "data.buckets.frames: [5, 9] has no place for pictures; add 1 to it, or remove them:",
        "  set/p.txt: set/p",
        "  set/q.txt: set/q",
        "data.short: error: 1 clip is too short for data.buckets.frames; "
        "set it to skip, loop, hold or shorter, or put a smaller count into data.buckets.frames:",
        "  set/a.txt: set/a: 1 of the 5 frames needed at 24 fps",
    ]


def test_clips_among_pictures_are_shown_as_one_frame_visibly():
    placement = place([clip(40), picture()], [ONE], Clips(window="middle"))
    assert placement.buckets == [ONE, ONE]
    assert placement.notes == ["1 clip is shown as one frame: data.buckets.frames is [1]"]
    assert indices(clip(41), 1, window="middle") == [20]


def test_a_rate_of_zero_is_refused():
    message = "data.fps: 0.0 is not above 0; leave it out for clips' own rates"
    assert error([clip(9)], [FIVE], Clips(fps=0.0)) == [message]


def test_pixels_are_exactly_those_of_the_frames_asked_for(make, shown, tmp_path):
    make.clip("set/a.mp4")
    make.text("set/a.txt", "words")
    items = scan([Folder(path=Path("set"))], tmp_path, Hashes(tmp_path)).items
    item, file = items[0], items.open(0)
    shown_frames = view(item, Bucket(5, 32, 32), Clips(fps=8, window="middle"), Fixed())
    pixels = load_pixels(file, shown_frames)
    assert (tuple(pixels.shape), pixels.dtype) == ((3, 5, 32, 32), torch.float32)
    assert shown((pixels.permute(1, 2, 3, 0).numpy() + 1) * 127.5) == list(shown_frames.indices)
    looped = load_pixels(file, replace(shown_frames, indices=(3, 4, 3)))
    assert torch.equal(looped[:, 0], looped[:, 2])


def test_pixels_of_a_picture_at_its_own_size_are_untouched(tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(original).save(tmp_path / "p.png")
    item, file = picture(), File(tmp_path / "p.png")
    pixels = load_pixels(file, view(item, ONE, Clips(), Fixed()))
    expected = torch.from_numpy(original).permute(2, 0, 1)[:, None]
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), expected)
    # As diffusers' VaeImageProcessor: pil_to_numpy, then normalize.
    assert torch.equal(pixels, 2.0 * (expected.float() / 255.0) - 1.0)


def test_the_crop_is_a_part_of_the_resized_picture(tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    Image.fromarray(original).save(tmp_path / "p.png")
    item, file = picture(width=200, height=90), File(tmp_path / "p.png")
    pixels = load_pixels(file, view(item, ONE, Clips(), Fixed()))
    resized = np.asarray(Image.fromarray(original).resize((71, 32), Image.Resampling.LANCZOS))
    expected = torch.from_numpy(resized[:, 11:59].copy()).permute(2, 0, 1)[:, None]
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), expected)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
