"""Decide what of an item is shown: which frames, how large, which part; and read exactly that."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import UserError
from ...files import Openable
from ...options import option
from .. import media
from ..buckets import nearest_bucket
from ..sizes import Bucket
from ..sources import counted, listed
from ..view import Crop, View
from .item import Item

if TYPE_CHECKING:
    from torch import Tensor


@option
class Clips:
    """Which frames of a clip are shown, and which part of a frame."""

    fps: float | None = None
    """Frames per second that the model sees; a clip's own by default."""
    window: Literal["head", "middle", "random"] = "head"
    """Where a clip that is longer than its bucket is cut."""
    short: Literal["error", "skip", "loop", "hold", "shorter"] = "error"
    """What becomes of a clip too short for every bucket of several frames.

    `skip` leaves it out, `loop` starts it again, `hold` repeats its last frame, `shorter` shows one
    frame of it.
    """
    crop: Literal["center", "random"] = "center"
    """Which part of a frame whose shape is not the bucket's is shown."""


MOST_ENLARGED, LEAST_SHOWN = 2, 0.5
"""How often a side may be as long as in the file, and how much of the area has to be seen, without a note."""
Chance = Callable[[str], float]
"""Gives a number in [0, 1) for a purpose; `Draw.row` is one."""


@dataclass(frozen=True)
class Placement:
    """The bucket of each item, None for one that is left out, and what the user should know of it."""

    buckets: Sequence[Bucket | None]
    notes: Sequence[str]


def place(items: Sequence[Item], buckets: Sequence[Bucket], clips: Clips) -> Placement:
    """Place every item: the most frames it fills at the rate asked for, then the nearest shape.

    Pictures train in buckets of one frame. A clip goes to one only if no bucket has several frames, or if it
    is too short for those that have and `short` says `shorter`.
    """
    if clips.fps is not None and clips.fps <= 0:
        raise UserError(f"data.fps: {clips.fps} is not above 0; leave it out for clips' own rates")
    single = [bucket for bucket in buckets if bucket.frames == 1]
    counts = sorted({bucket.frames for bucket in buckets if bucket.frames > 1})
    least = min(counts, default=0)
    pictures = [] if single else [item for item in items if item.kind == "image"]
    short = [item for item in items if item.kind == "video" and num_frames_at(item, clips.fps) < least]
    mistakes = []
    if pictures:
        lines = "".join(f"\n  {item.where}: {item.id}" for item in pictures)
        mistakes.append(
            f"data.buckets.frames: {counts} has no place for pictures; add 1 to it, or remove them:{lines}"
        )
    if short and (clips.short == "error" or (clips.short == "shorter" and not single)):
        mistakes.append(_too_short(short, least, clips))
    if mistakes:
        raise UserError("\n".join(mistakes))
    left_out = {item.id for item in short} if clips.short == "skip" else set()
    homes: list[Bucket | None] = []
    for item in items:
        count = num_frames_at(item, clips.fps)
        if clips.short in ("loop", "hold"):
            count = max(count, least)
        places = single if item.kind == "image" else buckets
        homes.append(None if item.id in left_out else _home(item, count, places))
    return Placement(homes, [*_notes(items, short, least, clips), *_poor_fits(items, homes)])


def num_frames_at(item: Item, fps: float | None) -> int:
    """Count the frames a clip gives at a rate: as many as have a nearest source frame within the clip."""
    if item.kind == "image":
        return 1
    if item.times and fps is not None:
        return ceil(_end(item) * fps)
    return ceil((item.num_frames - Fraction(1, 2)) / _step(item, fps))


def view(item: Item, bucket: Bucket, clips: Clips, draw: Chance) -> View:
    """Choose frames and crop of an item; only `random` windows and crops draw."""
    found = _centre(item.width, item.height, bucket)
    crop, (height, width) = found.crop, found.resize
    if clips.crop == "random":
        top = _pick(draw("crop_top"), height - bucket.height)
        left = _pick(draw("crop_left"), width - bucket.width)
        crop = replace(crop, top=top, left=left)
    return View(_frames(item, bucket.frames, clips, draw), found.resize, crop)


def load_pixels(file: Openable, view: View) -> "Tensor":
    """Read a view as (3, T, H, W) in [-1, 1], one source frame in memory at a time."""
    import numpy as np

    shown = {index: _shown(frame, view) for index, frame in media.iter_frames(file, view.indices)}
    return to_pixels(np.stack([shown[index] for index in view.indices]))


def to_pixels(frames: "media.Pixels") -> "Tensor":
    """Frames (T, H, W, 3) in uint8 as (3, T, H, W) in [-1, 1]."""
    import torch

    # The arithmetic of diffusers' processors, so that equal pixels give equal bits.
    return (torch.from_numpy(frames).float() / 255 * 2 - 1).permute(3, 0, 1, 2).contiguous()


def covering_picture(file: Path | Openable, bucket: Bucket) -> "media.Pixels":
    """Scale a picture to cover a bucket and cut out its centre: (1, H, W, 3) in uint8."""
    return _covering_frames(media.read_image(file), bucket)


def covering_frames(path: Path, bucket: Bucket) -> "media.Pixels":
    """A picture, or the first frames of a clip, cut to a bucket: (T, H, W, 3) in uint8."""
    probe = media.probe(path)
    if probe.kind == "image":
        return covering_picture(path, bucket)
    if probe.num_frames < bucket.frames:
        raise UserError(f"{path}: has {probe.num_frames} frames, and samples have {bucket.frames}; give more")
    return _covering_frames(media.read_frames(path, range(bucket.frames)), bucket)


def _covering_frames(frames: "media.Pixels", bucket: Bucket) -> "media.Pixels":
    import numpy as np

    view = _centre(frames.shape[2], frames.shape[1], bucket)
    return np.stack([_shown(frame, view) for frame in frames])


def _centre(width: int, height: int, bucket: Bucket) -> View:
    """The centre of frames of a size, resized to the smallest of their shape that covers the bucket."""
    if width * bucket.height >= height * bucket.width:
        width, height = max(bucket.width, round(width * bucket.height / height)), bucket.height
    else:
        width, height = bucket.width, max(bucket.height, round(height * bucket.width / width))
    top, left = (height - bucket.height) // 2, (width - bucket.width) // 2
    return View((), (height, width), Crop(top, left, bucket.height, bucket.width))


def _shown(frame: "media.Pixels", view: View) -> "media.Pixels":
    import numpy as np
    from PIL import Image

    height, width = view.resize
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
    crop = view.crop
    return np.asarray(resized)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


# Frames


def _step(item: Item, fps: float | None) -> Fraction:
    """Source frames per shown frame; exact, so that counts and indices cannot disagree by rounding."""
    return Fraction(1) if fps is None or item.kind == "image" else Fraction(item.fps) / Fraction(fps)


def _frames(item: Item, count: int, clips: Clips, draw: Chance) -> tuple[int, ...]:
    """Source frames to show: frame k is the one nearest in time to the start of the window + k / fps."""
    length = num_frames_at(item, clips.fps)
    if count > length:
        assert clips.short in ("loop", "hold"), (item.id, count, length, clips.short)
        again = [k % length if clips.short == "loop" else length - 1 for k in range(length, count)]
        return tuple(_nearest(item, 0, k, clips.fps) for k in [*range(length), *again])
    slack = _slack(item, count - 1, clips.fps)
    start = slack // 2 if clips.window == "middle" else 0
    if clips.window == "random":
        start = _pick(draw("window"), slack)
    return tuple(_nearest(item, start, k, clips.fps) for k in range(count))


def _nearest(item: Item, start: int, k: int, fps: float | None) -> int:
    """The source frame nearest in time to frame `start` + k / fps; the later of two as near."""
    if not item.times or fps is None:
        return start + floor(k * _step(item, fps) + Fraction(1, 2))
    time = item.times[start] + k / fps
    after = min(bisect_right(item.times, time), item.num_frames - 1)
    return after if item.times[after] - time <= time - item.times[after - 1] else after - 1


def _slack(item: Item, k: int, fps: float | None) -> int:
    """The last source frame from which a window of k + 1 shown frames stays within the clip."""
    if not item.times or fps is None:
        return item.num_frames - 1 - _nearest(item, 0, k, fps)
    return max(bisect_left(item.times, _end(item) - k / fps) - 1, 0)


def _end(item: Item) -> float:
    """Seconds at which a clip of variable rate ends: half a mean frame after its last, as at a fixed rate."""
    return item.times[-1] + 0.5 / item.fps


def _pick(uniform: float, slack: int) -> int:
    """One of 0 to `slack`, equally likely."""
    return int(uniform * (slack + 1))


# Placing


def _home(item: Item, num_frames: int, buckets: Sequence[Bucket]) -> Bucket:
    found = nearest_bucket((item.height, item.width), num_frames, buckets)
    assert found is not None, (item.id, num_frames, buckets)
    return found


def _shortness(item: Item, least: int, clips: Clips) -> str:
    rate = clips.fps or item.fps
    return f"{item.id}: {num_frames_at(item, clips.fps)} of the {least} frames needed at {rate:g} fps"


def _too_short(short: Sequence[Item], least: int, clips: Clips) -> str:
    lines = "".join(f"\n  {item.where}: {_shortness(item, least, clips)}" for item in short)
    frames = "data.buckets.frames"
    if clips.short == "shorter":
        out = f"add 1 to {frames} for `shorter`, or set it to skip, loop or hold"
    else:
        out = f"set it to skip, loop, hold or shorter, or put a smaller count into {frames}"
    return f"data.short: {clips.short}: {counted(short, 'clip')} too short for {frames}; {out}:{lines}"


def _poor_fits(items: Sequence[Item], homes: Sequence[Bucket | None]) -> list[str]:
    """Name the items of which little is shown, or more than they hold."""
    enlarged, cut = [], []
    for item, bucket in zip(items, homes, strict=True):
        if bucket is None:
            continue
        scale = max(bucket.height / item.height, bucket.width / item.width)
        if scale > MOST_ENLARGED:
            enlarged.append(item.id)
        if bucket.height * bucket.width < LEAST_SHOWN * scale**2 * item.height * item.width:
            cut.append(item.id)
    notes = []
    if enlarged:
        much = f"enlarged more than {MOST_ENLARGED} times; give larger files, or smaller data.buckets"
        notes.append(f"{counted(enlarged, 'sample')} {much}: {listed(enlarged)}")
    if cut:
        much = f"cropped to less than {LEAST_SHOWN:.0%}; crop them yourself, or add a bucket of their shape"
        notes.append(f"{counted(cut, 'sample')} {much}: {listed(cut)}")
    return notes


def _notes(items: Sequence[Item], short: Sequence[Item], least: int, clips: Clips) -> list[str]:
    videos = [item for item in items if item.kind == "video"]
    if videos and not least:
        return [f"{counted(videos, 'clip')} shown as one frame: data.buckets.frames is [1]"]
    notes = []
    if (uneven := [item for item in videos if item.times]) and clips.fps is None:
        named = ", ".join(item.id for item in uneven)
        notes.append(
            f"{counted(uneven, 'clip')} of variable frame rate, shown frame by frame; state data.fps to "
            f"pick frames by time: {named}"
        )
    if not short:
        return notes
    done = {
        "skip": "left out",
        "loop": "shown from the start again",
        "hold": "held at the last frame",
        "shorter": "shown as one frame",
    }[clips.short]
    named = "; ".join(_shortness(item, least, clips) for item in short)
    return [*notes, f"{counted(short, 'clip')} too short and {done} (data.short: {clips.short}): {named}"]
