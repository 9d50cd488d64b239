"""Pictures and clips of a conversation: decoded, brought to a budget of pixels, and their coordinates."""

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ...data.conversations.conversation import Conversation, Media, Message
from ...data.conversations.options import Boxes, ChatOptions
from ...data.media import read_frames, read_image
from ...errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

Size = tuple[int, int]
"""Width and height in pixels."""
USUAL_FPS = 2.0
"""Frames taken of a second, where neither the run nor the processor says."""
FINEST = 1000.0
"""Frames a second by which clips of variable rate are counted, at most."""
SMALLEST = 32 * 32
"""Pixels: nothing is made smaller than that to fit into a row."""


@dataclass(frozen=True)
class Frames:
    """Frames that are shown of a clip, and what a processor is told of it to know their times."""

    indices: tuple[int, ...]
    places: tuple[float, ...]
    """Seconds from the clip's start to each, times `fps`: their indices, where the rate is constant."""
    total: int
    """Frames that the clip has at `fps`."""
    fps: float

    @property
    def seconds_each(self) -> float:
        """Seconds that one of them stands for."""
        return self.total / self.fps / len(self.places)


STILL = Frames((0,), (0,), 1, 1.0)


@dataclass(frozen=True)
class DecodedMedia:
    """A picture or a clip, decoded and not resized yet."""

    media: Media
    pixels: "Pixels"  # (N, H, W, 3), N = 1 for a picture
    frames: Frames

    @property
    def size(self) -> Size:
        return int(self.pixels.shape[2]), int(self.pixels.shape[1])

    @property
    def name(self) -> str:
        return PurePosixPath(self.media.files[0].name).name

    def fitted(self, limits: tuple[int, int] | None, scale: float) -> Size:
        """Its size within a budget, times what an item's pictures are shrunk by (of their area)."""
        size = fit_area(self.size, limits)
        if scale == 1:
            return size
        least = min(SMALLEST, size[0] * size[1])
        return scale_area(size, max(scale, least / (size[0] * size[1])))

    def picture(self, size: Size) -> Any:
        """The first frame as Pillow has it, resized."""
        from PIL import Image

        return Image.fromarray(self.clip(size)[0])

    def clip(self, size: Size) -> "Pixels":
        """All frames, resized."""
        import numpy as np
        from PIL import Image

        if self.size == size:
            return self.pixels
        frames = (Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in self.pixels)
        return np.stack([np.asarray(frame) for frame in frames])

    def metadata(self, size: Size) -> dict[str, Any]:
        """What a processor reads to tell the times of the frames."""
        return {
            "total_num_frames": self.frames.total,
            "fps": self.frames.fps,
            "width": size[0],
            "height": size[1],
            "duration": self.frames.total / self.frames.fps,
            "frames_indices": list(self.frames.places),
        }


def decode(media: Media, options: ChatOptions, processor: Any) -> DecodedMedia:
    """Decode a picture, or of a clip the frames that the model's processor takes."""
    if media.kind == "image":
        return DecodedMedia(media, read_image(media.files[0]), STILL)
    if len(media.files) > 1 or not media.fps:
        frames = _all_pictures(media, options, processor.video_processor)
        return DecodedMedia(media, _read_pictures(media, frames.indices), frames)
    frames = sample_frames(media, options, processor.video_processor)
    return DecodedMedia(media, read_frames(media.files[0], frames.indices), frames)


def sample_frames(media: Media, options: ChatOptions, video_processor: Any) -> Frames:
    """The frames that the published processor takes of a clip file.

    It counts frames of a constant rate. A clip of another is counted at a rate that tells its closest frames
    apart; then the frames nearest to what is taken are shown, with their own times.
    """
    fps, total = media.fps, media.num_frames
    if media.times:
        gaps = [after - before for before, after in pairwise(media.times) if after > before]
        fps = min(max(1 / min(gaps), media.fps), FINEST)
        total = max(1, round(media.num_frames / media.fps * fps))
    taken = _taken(total, fps, options, video_processor)
    if not media.times:
        return Frames(taken, taken, total, fps)
    indices = dict.fromkeys(nearest(media.times, place / fps) for place in taken)
    return Frames(tuple(indices), tuple(media.times[index] * fps for index in indices), total, fps)


def nearest(times: Sequence[float], time: float) -> int:
    """The index of the time next to another; the earlier of two that are as near."""
    place = bisect_left(times, time)
    near = [index for index in (place - 1, place) if 0 <= index < len(times)]
    return min(near, key=lambda index: abs(times[index] - time))


def _taken(total: int, fps: float, options: ChatOptions, video_processor: Any) -> tuple[int, ...]:
    """Indices of frames by the processor's own function, at most `video_frames`."""
    from transformers.video_utils import VideoMetadata

    own, number = copy(video_processor), getattr(video_processor, "num_frames", None)
    rate: dict[str, Any] = {"fps": min(_frames_per_second(options, own), fps)}
    if options.video_fps is None and number is not None:
        rate = {"num_frames": min(number, total)}
    elif number is not None and "smolvlm" not in type(own).__name__.lower():  # there it is the most
        own.num_frames = None
    about = {"total_num_frames": total, "fps": fps, "duration": total / fps}
    most, taken = options.video_frames, list[int]()
    # Not cut to the most, but sampled anew: seconds are told of frames that lie evenly.
    for arguments in (rate, {"fps": most / total * fps * (1 + 1e-9)}):
        try:
            taken = [int(i) for i in own.sample_frames(metadata=VideoMetadata(**about), **arguments)]
        except (ValueError, ZeroDivisionError):  # for some processors a clip is too short to be sampled
            taken = []
        if len(taken) <= most:
            break
    if not taken:
        return (0,) * min(getattr(own, "temporal_patch_size", 1), most)
    return spread_evenly(taken, most)


def _frames_per_second(options: ChatOptions, video_processor: Any) -> float:
    return float(options.video_fps or getattr(video_processor, "fps", None) or USUAL_FPS)


def spread_evenly(taken: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many, each for an equal part of all."""
    count = min(len(taken), most)
    return tuple(taken[i * len(taken) // count] for i in range(count))


def _all_pictures(media: Media, options: ChatOptions, video_processor: Any) -> Frames:
    """The pictures of a clip that is stated as such; they are taken to be `video_fps` a second."""
    total, fps = len(media.files), _frames_per_second(options, video_processor)
    indices = spread_evenly(range(total), options.video_frames)
    return Frames(indices, indices, total, fps)


def _read_pictures(media: Media, indices: Sequence[int]) -> "Pixels":
    import numpy as np

    frames = [read_image(media.files[index])[0] for index in indices]
    for index, frame in zip(indices, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise UserError(
                f"{media.files[index].name}: is {frame.shape[1]}x{frame.shape[0]}, "
                "the first picture of the clip "
                f"{frames[0].shape[1]}x{frames[0].shape[0]}; bring the pictures of a clip to one size"
            )
    return np.stack(frames)


def fit_area(size: Size, limits: tuple[int, int] | None) -> Size:
    """Bring a size to a least and a most of pixels, keeping its aspect ratio."""
    area = size[0] * size[1]
    if limits is not None and area > limits[1]:
        return scale_area(size, limits[1] / area)
    if limits is not None and area < limits[0]:
        # Rounded up: no less than was asked for.
        factor = math.sqrt(limits[0] / area)
        return math.ceil(size[0] * factor), math.ceil(size[1] * factor)
    return size


def scale_area(size: Size, area: float) -> Size:
    """A size with its area multiplied, at most that, and no longer in its shape."""
    factor = math.sqrt(area)
    # The square root of a square may come out a hair below: 447.99999 is 448.
    width, height = (max(1, math.floor(side * factor + 1e-6)) for side in size)
    if area < 1 and size[0] < size[1]:
        height = min(height, max(1, width * size[1] // size[0]))
    elif area < 1:
        width = min(width, max(1, height * size[0] // size[1]))
    return width, height


# Coordinates


def check_boxes(boxes: Boxes | None, processor: Any, model_type: str) -> None:
    """Refuse absolute coordinates where the model does not see the whole picture in one known size."""
    if boxes is None or not boxes.absolute:
        return
    if not hasattr(processor.image_processor, "merge_size"):
        raise UserError(
            f"boxes.format: {boxes.format} is for types that see a whole picture in a size of its own "
            f"(qwen2_5_vl), {model_type} does not; write the coordinates as relative_1000"
        )


def processed_size(processor: Any, picture: Any) -> Size:
    """The size that the processor resizes a picture to."""
    image_processor = processor.image_processor
    _, rows, columns = image_processor(images=[picture], return_tensors="pt")["image_grid_thw"][0].tolist()
    return columns * image_processor.patch_size, rows * image_processor.patch_size


def rescale_boxes(
    conversation: Conversation, boxes: Boxes, sizes: Sequence[tuple[Size, Size]]
) -> list[Message]:
    """Rescale the coordinates in the texts to the picture shown last before them.

    `sizes` are those of each picture in its file and as the model sees it.
    """
    pictures = iter(sizes)
    current = sizes[0] if len(sizes) == 1 else None
    messages = []
    for message in conversation.messages:
        parts: list[str | Media] = []
        for part in message.parts:
            if isinstance(part, str):
                part = _rescale_text(part, boxes, current)
            elif part.kind == "image":
                current = next(pictures)
            parts.append(part)
        messages.append(
            Message(message.role, tuple(parts), train=message.train, tool_calls=message.tool_calls)
        )
    return messages


def _rescale_text(text: str, boxes: Boxes, sizes: tuple[Size, Size] | None) -> str:
    def of_match(match: re.Match[str]) -> str:
        if sizes is None:
            raise UserError(f"{match.group()!r} stands before any picture; show the picture first")
        size, processed = sizes
        limits = size if boxes.absolute else (1000, 1000)
        _check_inside(match, boxes.axes, limits)
        if not boxes.absolute:
            return match.group()
        written, end = "", match.start()
        for group, axis in enumerate(boxes.axes, start=1):
            start, stop = match.span(group)
            side = 0 if axis in "xw" else 1
            number = float(text[start:stop]) * (processed[side] / size[side])
            decimals = len(text[start:stop].partition(".")[2])  # as many as it was written with
            written += f"{text[end:start]}{number:.{decimals}f}"
            end = stop
        return written + text[end : match.end()]

    return boxes.compiled.sub(of_match, text)


def _check_inside(match: re.Match[str], axes: str, limits: Size) -> None:
    numbers = [float(number) for number in match.groups()]
    corners = [numbers[0] + numbers[2], numbers[1] + numbers[3]] if axes == "xywh" else numbers[2:]
    reached = [*numbers[:2], *corners]
    if all(0 <= number <= limits[place % 2] for place, number in enumerate(reached)):
        return
    raise UserError(
        f"{match.group()!r} is outside of its picture of {limits[0]}x{limits[1]}; correct it, "
        "or the format that boxes states"
    )
