"""Probe, read and write pictures and clips; the only module that knows Pillow and PyAV.

They, and numpy, are imported inside functions: commands that open no media start without them. What is read
is a path or anything else that opens its bytes (`Openable`).
"""

import json
import os
import struct
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import accumulate, chain, pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from ..files import File, Openable, atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

STILLS = frozenset({".png", ".jpg", ".jpeg"})
ANIMATIONS = frozenset({".gif", ".webp"})
"""Pictures or clips, by how many frames they hold; FFmpeg cannot decode animated webp: Pillow reads both."""
FILMS = frozenset({".mp4", ".mov", ".webm", ".mkv"})
EXTENSIONS = STILLS | ANIMATIONS | FILMS

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""Values of the EXIF tag of orientation that exchange width and height."""
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
"""What Pillow's decoders raise for damaged files; found by changing bytes at random."""


@dataclass(frozen=True)
class Probe:
    """What a file holds, sizes as shown (rotation metadata applied), found without decoding its frames."""

    kind: Literal["image", "video"]
    width: int
    height: int
    num_frames: int
    fps: float
    """The mean rate of a clip with a variable one; 0 for an image."""
    times: tuple[float, ...] = ()
    """Seconds from the first frame to each, of a clip whose frames are not where its mean rate has them."""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "Probe":
        """The inverse of `text`."""
        fields = json.loads(text)
        return Probe(**{**fields, "times": tuple(fields["times"])})


def probe(file: Path | Openable) -> Probe:
    """Find kind, size, length and rate of a file."""
    file = _openable(file)
    return _probe_film(file) if _suffix(file) in FILMS else _probe_picture(file)


def _openable(file: Path | Openable) -> Openable:
    return File(file) if isinstance(file, Path) else file


def _suffix(file: Openable) -> str:
    return PurePosixPath(file.name).suffix.lower()


def _clip(width: int, height: int, times: Sequence[Fraction], rate: Fraction) -> Probe:
    """A clip of a stated rate, or of a variable one if a frame is half a frame or more from its place."""
    times = [time - times[0] for time in times]
    if times[-1] == 0 or all(abs(time * rate - index) < Fraction(1, 2) for index, time in enumerate(times)):
        return Probe("video", width, height, len(times), float(rate))
    mean = (len(times) - 1) / times[-1]
    return Probe("video", width, height, len(times), float(mean), tuple(map(float, times)))


def read_image(file: Path | Openable) -> "Pixels":
    """Read a picture as (1, H, W, 3): upright, transparency over white, any mode as 8-bit RGB."""
    with _opened_picture(_openable(file)) as image:
        return _rgb_of_picture(image)[None]


def read_frames(file: Path | Openable, indices: Sequence[int]) -> "Pixels":
    """Read frames (N, H, W, 3) of a clip by their place in presentation order; repeats are read once."""
    import numpy as np

    frames = dict(iter_frames(file, indices))
    return np.stack([frames[index] for index in indices])


def iter_frames(file: Path | Openable, indices: Sequence[int]) -> Iterator[tuple[int, "Pixels"]]:
    """Yield (index, (H, W, 3)) of each asked frame once, in presentation order, one at a time in memory."""
    file, wanted = _openable(file), sorted(set(indices))
    assert min(wanted, default=-1) >= 0, (file, wanted)
    return _film_frames(file, wanted) if _suffix(file) in FILMS else _picture_frames(file, wanted)


def write_image(path: Path, pixels: "Pixels") -> None:
    """Write (H, W, 3) as png, complete or not at all."""
    from PIL import Image

    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_video(path: Path, frames: "Pixels", fps: float) -> None:
    """Write (T, H, W, 3) as h264 mp4, complete or not at all; odd sizes repeat their last row or column."""
    import av
    import numpy as np

    num_frames, height, width, _ = frames.shape
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        # crf 17: differences to the frames given cannot be seen, at a tenth of the size of lossless.
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "17"})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for i in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even[i], format="rgb24")))
        container.mux(stream.encode())


# Pictures and animations (Pillow)


@contextmanager
def _opened_picture(file: Openable) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with file.open() as stream, Image.open(stream) as image:
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:  # its own text shows the stream, not the file
        raise UserError(
            f"{file.name}: cannot be read as a picture (no format is recognised); replace it or remove it"
        ) from error
    except (*PILLOW_ERRORS, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file.name}: cannot be read as a picture ({error}); replace it or remove it"
        ) from error


def _probe_picture(file: Openable) -> Probe:
    with _opened_picture(file) as image:
        width, height = image.size
        if image.getexif().get(ORIENTATION) in TURNED:
            width, height = height, width
        # Phones write jpegs with a second picture inside (MPO): several frames are a clip in animations only.
        num_frames = image.n_frames if _suffix(file) in ANIMATIONS else 1
    if num_frames == 1:
        return Probe("image", width, height, 1, 0.0)
    durations = _webp_durations(file) if _suffix(file) == ".webp" else _gif_durations(file)
    if len(durations) != num_frames:
        raise UserError(
            f"{file.name}: states {len(durations)} frames but holds {num_frames}: it is damaged; "
            "replace it or remove it"
        )
    starts = [Fraction(time, 1000) for time in accumulate(durations[:-1], initial=0)]
    return _clip(width, height, starts, Fraction(1000 * num_frames, sum(durations)))


def _webp_durations(file: Openable) -> list[int]:
    """Milliseconds of each frame, from the ANMF chunks: Pillow tells them only after decoding."""
    durations: list[int] = []
    with file.open() as stream:
        stream.seek(12)
        while len(header := stream.read(8)) == 8:
            size = int.from_bytes(header[4:], "little")
            if header[:4] == b"ANMF":
                milliseconds = int.from_bytes(stream.read(16)[12:15], "little")
                # Browsers show frames of 10 ms and less for 100 ms; FFmpeg does so for gif.
                durations.append(milliseconds if milliseconds > 10 else 100)
                size -= 16
            stream.seek(size + size % 2, os.SEEK_CUR)
    return durations


def _gif_durations(file: Openable) -> list[int]:
    with _opened_film(file) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        return [round(1000 * packet.duration * stream.time_base) for packet in packets]


def _picture_frames(file: Openable, wanted: list[int]) -> Iterator[tuple[int, "Pixels"]]:
    index = 0
    try:
        with _opened_picture(file) as image:
            for index in wanted:
                image.seek(index)
                yield index, _rgb_of_picture(image)
    except UserError as error:
        raise UserError(f"{error} (at frame {index})") from error


def _rgb_of_picture(image: Any) -> "Pixels":
    import numpy as np
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips at 255
        grey = (np.asarray(upright).astype(np.int64) / 257).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


# Films (PyAV)


@dataclass(frozen=True)
class _Key:
    """A frame that decoding can start from."""

    pts: int
    dts: int


@dataclass(frozen=True)
class _Timeline:
    """Times of the first frames of a film in presentation order, and of the key frames among them."""

    times: list[int]
    keys: list[_Key]

    def key_before(self, time: int) -> _Key:
        place = bisect_right(self.keys, time, key=lambda key: key.pts)
        return self.keys[max(place - 1, 0)]

    def stamp(self, index: int) -> tuple[int, int]:
        """(time, how many frames of the same time come before): files round times, so two may be equal."""
        time = self.times[index]
        return time, index - bisect_left(self.times, time)


@contextmanager
def _opened_film(file: Openable) -> Iterator[Any]:
    """Open the main video stream as (container, stream); what FFmpeg refuses is the user's file's fault."""
    import av

    try:
        # Titles in other encodings than UTF-8 are none of our business.
        with file.open() as opened, av.open(opened, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UserError(f"{file.name}: holds no video stream; replace it or remove it")
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{file.name}: cannot be read as a video ({error.strerror}); replace it or remove it"
        ) from error


def _probe_film(file: Openable) -> Probe:
    with _opened_film(file) as (container, stream):
        _check_length(file, container, stream)
        times = _shown_times(container, stream)
        rate = stream.average_rate or stream.guessed_rate
        # One decoded frame tells the rotation and that the codec is there.
        first = next(container.decode(stream), None) if times else None
        if first is None:
            raise UserError(f"{file.name}: holds no frame that can be decoded; replace it or remove it")
    if not rate:
        raise UserError(
            f"{file.name}: states no frame rate; "
            f"write it anew: ffmpeg -i {PurePosixPath(file.name).name} -r 24 new.mp4"
        )
    width, height = first.width, first.height
    if _quarter_turns(first) % 2:
        width, height = height, width
    return _clip(width, height, times, rate)


def _check_length(file: Openable, container: Any, stream: Any) -> None:
    """Refuse a file cut short behind its sample table: it still states all its frames."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if stream.frames and end > container.size:
        raise UserError(
            f"{file.name}: is cut short at byte {container.size}, its frames reach to {end}; "
            "copy it again or remove it"
        )


def _shown_times(container: Any, stream: Any) -> list[Fraction]:
    """Seconds at which frames are shown, in order, from the packets; then start again."""
    # Edit lists hide frames that decoding needs but nobody sees: discarded ones.
    stamps = sorted(p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard)
    container.seek(0)
    return [stamp * stream.time_base for stamp in stamps]


def _film_frames(file: Openable, wanted: list[int]) -> Iterator[tuple[int, "Pixels"]]:
    with _opened_film(file) as (container, stream):
        timeline = _timeline(container, stream, wanted[-1])
        if wanted[-1] >= len(timeline.times):
            raise UserError(
                f"{file.name}: frame {wanted[-1]} cannot be read, there are {len(timeline.times)} frames; "
                "replace it or remove it"
            )
        for run in _runs(timeline, wanted):
            yield from _run_frames(file, container, stream, timeline, run)


def _timeline(container: Any, stream: Any, last: int) -> _Timeline:
    """Read packets, without decoding, until the time of frame `last` is certain."""
    times: list[int] = []
    keys: list[_Key] = []
    for packet in container.demux(stream):
        if packet.pts is None:  # the empty packet that ends the stream
            continue
        # No later packet is shown before it is decoded: what comes before this time is complete.
        if len(times) > last and packet.dts is not None and packet.dts > times[last]:
            break
        if packet.is_keyframe:
            keys.append(_Key(packet.pts, packet.pts if packet.dts is None else packet.dts))
        if not packet.is_discard:
            insort(times, packet.pts)
    keys.sort(key=lambda key: key.pts)
    # Seeking to a time that two frames share may land on the other one, which decoding cannot start from.
    twins = {time for time, following in pairwise(times) if time == following}
    return _Timeline(times, [key for key in keys if key == keys[0] or key.pts not in twins])


def _runs(timeline: _Timeline, wanted: list[int]) -> list[list[int]]:
    """Split frames where a key frame between two of them lets decoding skip some."""
    runs = [[wanted[0]]]
    for index in wanted[1:]:
        following = timeline.times[runs[-1][-1] + 1]
        if timeline.key_before(timeline.times[index]).pts > following:
            runs.append([index])
        else:
            runs[-1].append(index)
    return runs


def _run_frames(
    file: Openable, container: Any, stream: Any, timeline: _Timeline, run: list[int]
) -> Iterator[tuple[int, "Pixels"]]:
    import av

    left = {timeline.stamp(index): index for index in run}
    last, given = timeline.times[run[-1]], Counter[int]()
    try:
        for frame in _decoded(container, stream, timeline.key_before(timeline.times[run[0]])):
            stamp = (frame.pts, given[frame.pts])
            given[frame.pts] += 1
            if stamp in left and not frame.is_corrupt:
                yield left.pop(stamp), _rgb_of_frame(frame)
            if not left or (frame.pts is not None and frame.pts > last):
                break
        cause = "it is damaged"
    except av.FFmpegError as error:
        cause = str(error.strerror)
    if left:
        raise UserError(
            f"{file.name}: frame {min(left.values())} cannot be decoded ({cause}); "
            "replace the file or remove it"
        )


def _decoded(container: Any, stream: Any, key: _Key) -> Iterator[Any]:
    """Decode from a key frame on."""
    # Some demuxers seek by presentation time, others by decoding time: the second may overshoot on the first.
    for time in (key.pts, key.dts):
        container.seek(time, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if first.pts is not None and first.pts <= key.pts:
            break
    for packet in chain([first], packets):
        yield from packet.decode()


def _rgb_of_frame(frame: Any) -> "Pixels":
    import numpy as np

    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
        color, alpha = rgba[..., :3], rgba[..., 3:]
        pixels = ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))


def _quarter_turns(frame: Any) -> int:
    """Counter-clockwise turns that bring a frame upright; FFmpeg counts its angles in the same direction."""
    return int(round(frame.rotation / 90) % 4)
