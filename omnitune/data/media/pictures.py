"""Pictures and animations, read by Pillow as a viewer shows them."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ...errors import MachineError, UserError
from ...files import Openable
from . import films
from .colour import colours_of, effect, to_srgb
from .probe import REVISION, Probe, timed, unreadable

if TYPE_CHECKING:
    from .probe import Pixels

ANIMATIONS = ("GIF", "WEBP")
"""Formats that are clips if they hold several frames. FFmpeg cannot decode animated webp."""
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""Values of the EXIF tag of orientation that exchange width and height."""
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
"""What Pillow's decoders raise for damaged files; found by changing bytes at random."""
MOST_PIXELS = 1 << 29
"""Of one picture; Pillow refuses twice what it is told. A telephone's are up to 200 million."""
MOST_TEXT = 1 << 28
"""Bytes of text and colour profile in a png; Pillow's own limit is below what editors and workflows write."""


def probe(file: Openable) -> Probe:
    """Find what a picture or animation is, without decoding it."""
    with _opened(file) as image:
        width, height = image.size
        chunks = _chunks(file)
        exif = _exif(image, chunks)
        if exif.get(ORIENTATION) in TURNED:
            width, height = height, width
        num_frames = getattr(image, "n_frames", 1)
        kind = image.format
        notes, revision = _display(image, chunks)
        if exif.get_ifd(0xA005).get(1) == "R03" and "icc_profile" not in image.info:
            notes.append("named Adobe RGB in EXIF but without a profile, shown as sRGB, as viewers do")
    if num_frames == 1 or kind not in ANIMATIONS:
        # Phones write jpegs with a second picture inside (MPO), which no viewer shows.
        if num_frames > 1 and kind != "MPO":
            notes += [f"of several frames ({kind}), of which the first is shown as a picture"]
        return Probe("image", width, height, 1, 0.0, notes=tuple(notes), revision=revision)
    durations = _webp_durations(file) if kind == "WEBP" else films.durations(file)
    if len(durations) != num_frames:
        raise UserError(
            f"{file.name}: states {len(durations)} frames but holds {num_frames}: it is damaged; "
            "replace it or remove it"
        )
    starts = [Fraction(time, 1000) for time in accumulate(durations[:-1], initial=0)]
    fps, times = timed(starts, Fraction(1000 * num_frames, sum(durations)))
    return Probe("video", width, height, num_frames, fps, times, tuple(notes), revision)


def read(file: Openable) -> "Pixels":
    """Read a picture, or the first frame of an animation, as (H, W, 3)."""
    with _opened(file) as image:
        return _shown(image, _chunks(file))


def frames(file: Openable, wanted: list[int]) -> Iterator[tuple[int, "Pixels"]]:
    index = 0
    try:
        with _opened(file) as image:
            chunks = _chunks(file)
            for index in wanted:
                image.seek(index)
                yield index, _shown(image, chunks)
    except UserError as error:
        raise UserError(f"{error} (at frame {index})") from error


@contextmanager
def _opened(file: Openable) -> Iterator[Any]:
    from PIL import Image, PngImagePlugin, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT
    replaced = "replace it or remove it"
    try:
        with file.open() as stream, Image.open(stream) as image:
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:  # its own text shows the stream, not the file
        problem = f"cannot be read as a picture (no format is recognised); {replaced}"
        raise UserError(f"{file.name}: {problem}") from error
    except Image.DecompressionBombError as error:
        problem = f"is larger than the {MOST_PIXELS:,} pixels that are read at most; scale it down"
        raise UserError(f"{file.name}: {problem}") from error
    except MemoryError as error:
        raise MachineError(f"{file.name}: does not fit into memory; scale it down or free some") from error
    except PILLOW_ERRORS as error:
        if isinstance(error, OSError) and error.errno:  # of the system, not Pillow's
            raise unreadable(file, error) from error
        if "MAX_TEXT" in str(error):
            limit = f"{MOST_TEXT >> 20} MiB of text or profile, more than are read; save it without"
            raise UserError(f"{file.name}: holds over {limit}") from error
        raise UserError(f"{file.name}: cannot be read as a picture ({error}); {replaced}") from error


def _chunks(file: Openable) -> dict[bytes, bytes]:
    """The chunks of a png, of long ones the first bytes; those behind its pixels are called `late ...`."""
    found: dict[bytes, bytes] = {}
    with file.open() as stream:
        if stream.read(8) != b"\x89PNG\r\n\x1a\n":
            return found
        late = b""
        while len(header := stream.read(8)) == 8:
            size, name = int.from_bytes(header[:4]), header[4:]
            late = b"late " if late or name == b"IDAT" else b""
            found[late + name] = stream.read(min(size, 32))
            stream.seek(size - len(found[late + name]) + 4, os.SEEK_CUR)
    return found


def _exif(image: Any, chunks: dict[bytes, bytes]) -> Any:
    """What is said in EXIF. Pillow decodes every png for it, as it may follow the pixels: few do."""
    from PIL import Image

    behind = any(b"late " + name in chunks for name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"))
    return Image.Image.getexif(image) if chunks and not behind else image.getexif()


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


# As a viewer shows it


def _display(image: Any, chunks: dict[bytes, bytes]) -> tuple[list[str], str]:
    """What a picture says of its display that is not obeyed; and REVISION if its colours are converted."""
    mode = _base_mode(image)
    profile, note = colours_of(image, chunks)
    notes = [note] if note else []
    revision = ""
    if profile is not None:
        found = effect(mode, profile)
        revision = REVISION if found == "some" else ""
        if found == "damaged":
            notes.append("of a colour profile that is damaged or not of its kind, shown as sRGB")
    if mode == "L" and image.mode != "L" and "transparency" in image.info:
        revision = REVISION  # a grey of 16 bits that stands for clear
    across, down = (
        image.info.get("dpi") or image.info.get("aspect") or image.info.get("jfif_density") or (1, 1)
    )
    if min(across, down) > 0 and not 0.98 < across / down < 1.02:
        notes += ["of pixels that are not square, shown as if they were"]
    return notes, revision


def _base_mode(image: Any) -> str:
    """The mode in which colours are converted: without alpha and palette, 8 bits."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _shown(image: Any, chunks: dict[bytes, bytes]) -> "Pixels":
    """A frame (H, W, 3) in sRGB, upright, on white."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    mode = _base_mode(image)
    profile = colours_of(image, chunks).profile
    if profile is not None and effect(mode, profile) == "none":
        profile = None  # it is sRGB's own, which would cost time and a step of rounding
    alpha = None
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips at 255
        grey = np.asarray(image).astype(np.int64)
        base = Image.fromarray((grey / 257).round().astype(np.uint8))
        if "transparency" in image.info:
            alpha = Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        base, alpha = (image if mode == "L" else rgba).convert(mode), rgba.getchannel("A")
    else:
        base = image.convert(mode)
    shown = (profile and to_srgb(base, profile)) or base.convert("RGB")
    if alpha is not None:
        shown.putalpha(alpha)
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    return np.asarray(shown)
