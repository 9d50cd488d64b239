"""Probe, read and write pictures and clips; the only package that knows Pillow and PyAV.

They, and numpy, are imported inside functions: commands that open no media start without them. What is read
is a path or anything else that opens its bytes (`Openable`).
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import File, Openable, atomic
from . import films, pictures
from .probe import Probe, suffix, unreadable

if TYPE_CHECKING:
    from .probe import Pixels

__all__ = [
    "EXTENSIONS", "Pixels", "Probe", "iter_frames", "probe", "read_frames", "read_image", "write_image",
    "write_video",
]  # fmt: skip

FILMS = frozenset({".mp4", ".mov", ".webm", ".mkv"})
EXTENSIONS = FILMS | {".png", ".jpg", ".jpeg", ".gif", ".webp"}
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
FILM_STARTS = (b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01", b"\x30\x26\xb2\x75")
PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")


def probe(file: Path | Openable) -> Probe:
    """Find kind, size, length and rate of a file."""
    file = _openable(file)
    return films.probe(file) if _holds_film(file) else pictures.probe(file)


def read_image(file: Path | Openable) -> "Pixels":
    """Read a picture as (1, H, W, 3), as a viewer shows it on white, in sRGB."""
    return pictures.read(_openable(file))[None]


def read_frames(file: Path | Openable, indices: Sequence[int]) -> "Pixels":
    """Read frames (N, H, W, 3) of a clip by their place in presentation order; repeats are read once."""
    import numpy as np

    frames = dict(iter_frames(file, indices))
    return np.stack([frames[index] for index in indices])


def iter_frames(file: Path | Openable, indices: Sequence[int]) -> Iterator[tuple[int, "Pixels"]]:
    """Yield (index, (H, W, 3)) of each asked frame once, in presentation order, one at a time in memory."""
    file, wanted = _openable(file), sorted(set(indices))
    assert min(wanted, default=-1) >= 0, (file, wanted)
    return films.frames(file, wanted) if _holds_film(file) else pictures.frames(file, wanted)


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


def _openable(file: Path | Openable) -> Openable:
    return File(file) if isinstance(file, Path) else file


def _holds_film(file: Openable) -> bool:
    """Whether FFmpeg reads it and not Pillow: contents decide, and where they say nothing the name does."""
    try:
        with file.open() as stream:
            start = stream.read(16)
    except OSError as error:
        raise unreadable(file, error) from error
    if start.startswith(FILM_STARTS) or start[8:12] == b"AVI ":
        return True
    if start.startswith(PICTURE_STARTS) or start[8:12] == b"WEBP":
        return False
    if start[4:8] == b"ftyp":
        return start[8:12] not in PICTURE_BRANDS
    return suffix(file) in FILMS
