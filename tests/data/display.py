"""Pictures and clips that say how they are to be displayed, made on the spot."""

import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms

from omnitune.data.media.colour import PRIMARIES, SRGB_CURVE, matrix_profile

ASSETS = Path(__file__).parents[1] / "assets"
HEIGHT, WIDTH = 32, 48
P3 = matrix_profile(PRIMARIES[12], SRGB_CURVE)
ADOBE = matrix_profile((0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.329), (2.2,))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def ramp() -> Any:
    """All hues, dark and light, none of them of full strength."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / [[[HEIGHT]], [[WIDTH]]]
    return Image.fromarray((255 * np.stack([x, y, (x + 1 - y) / 2], -1)).round().astype(np.uint8))


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey pictures."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    curve = struct.pack(">4s4xHxxi", b"para", 0, round(gamma * 65536))
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": white, b"kTRC": curve})


def cmyk_profile() -> bytes:
    """An ICC profile of ink that is less black and less pure than Pillow takes it to be."""
    identity = bytes(range(256))
    steps = np.stack(np.meshgrid(*4 * [np.linspace(0, 1, 9)], indexing="ij"), -1).reshape(1, -1, 4)
    shown = 40 + 210 * (1 - 0.9 * steps[..., :3]) * (1 - 0.8 * steps[..., 3:])
    lab = ImageCms.applyTransform(Image.fromarray(shown.round().astype(np.uint8)), _TO_LAB)
    lattice = (np.asarray(lab) ^ np.uint8([0, 128, 128])).tobytes()  # as ICC has signs
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = struct.pack(">4s4x4B", b"mft1", 4, 3, 9, 0) + matrix + 4 * identity + lattice + 3 * identity
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    return _profile(b"CMYK", b"Lab ", {b"wtpt": white, b"A2B0": table}, kind=b"prtr", version=0x02400000)


_TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def _profile(space: bytes, between: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr",
             version: int = 0x04200000) -> bytes:  # fmt: skip
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    white = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", offset + len(body), version, kind, space, between, b"acsp", white
    )
    return head + struct.pack(">I", len(tags)) + table + body


def with_chunks(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """Put chunks in front of everything else in a png."""
    whole = path.read_bytes()
    put = b""
    for name, content in chunks:
        put += (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )
    path.write_bytes(whole[:33] + put + whole[33:])
    return path


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 100000))


def chrm(primaries: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(v * 100000) for v in (*primaries[6:], *primaries[:6])))


def oriented(value: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def pictures(folder: Path) -> Iterator[Path]:
    """Write pictures of every format, each with one thing that it can say."""
    plain, grey = ramp(), ramp().convert("L")
    clear = plain.convert("RGBA")
    clear.putalpha(grey)

    def save(name: str, image: Any = plain, **options: Any) -> Path:
        path = folder / name
        lossless = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        best = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
        image.save(path, **(lossless | best | options))
        return path

    for kind in ("jpg", "png", "webp"):
        for told, profile in (("srgb", SRGB), ("p3", P3), ("adobe", ADOBE)):
            yield save(f"icc_{told}.{kind}", icc_profile=profile)
        for value in range(1, 9):
            yield save(f"orientation_{value}.{kind}", exif=oriented(value))
        yield save(f"icc_turned.{kind}", icc_profile=P3, exif=oriented(6))
    for kind in ("jpg", "png"):
        yield save(f"grey.{kind}", grey)
        yield save(f"grey_icc.{kind}", grey, icc_profile=grey_profile(1.4))
        yield save(f"grey_of_rgb.{kind}", grey, icc_profile=P3)
    for kind in ("png", "webp"):
        yield save(f"clear.{kind}", clear)
        yield save(f"clear_icc.{kind}", clear, icc_profile=P3)
    yield save("cmyk.jpg", plain.convert("CMYK"))
    yield save("cmyk_icc.jpg", plain.convert("CMYK"), icc_profile=cmyk_profile())
    yield save("wrong_kind.jpg", icc_profile=grey_profile(1.4))
    yield save("damaged.png", icc_profile=P3[:200])
    yield save("palette.png", plain.quantize(32))
    yield save("palette_icc.png", plain.quantize(32), icc_profile=P3)
    yield save("palette_clear.png", plain.quantize(32), transparency=3)
    yield save("palette_clear.gif", plain.quantize(32), transparency=3)
    yield save("grey_clear.png", grey, transparency=100)
    yield save("grey_alpha.png", clear.convert("LA"))
    yield save("bits.png", grey.convert("1"))
    yield save("sixteen.png", Image.fromarray(np.asarray(grey).astype(np.uint16) * 257))
    yield with_chunks(save("srgb_chunk.png"), (b"sRGB", b"\0"), gama(0.45455), chrm(PRIMARIES[1]))
    for gamma in (0.45455, 0.55, 1.0):
        yield with_chunks(save(f"gamma_{gamma}.png"), gama(gamma))
        yield with_chunks(save(f"gamma_{gamma}_p3.png"), gama(gamma), chrm(PRIMARIES[12]))
    yield with_chunks(save("p3_without_gamma.png"), chrm(PRIMARIES[12]))
    yield with_chunks(save("grey_gamma.png", grey), gama(0.7))
    for primaries, curve in ((1, 13), (12, 13), (9, 14), (9, 13), (1, 8), (6, 4)):
        yield with_chunks(save(f"coded_{primaries}_{curve}.png"), (b"cICP", bytes([primaries, curve, 0, 1])))
    yield with_chunks(save("coded_and_icc.png", icc_profile=ADOBE), (b"cICP", bytes([12, 13, 0, 1])))


# Clips

MATRICES = {
    "upright": (1, 0, 0, 1), "hflip": (-1, 0, 0, 1), "vflip": (1, 0, 0, -1), "half": (-1, 0, 0, -1),
    "transpose": (0, 1, 1, 0), "quarter": (0, 1, -1, 0), "three_quarters": (0, -1, 1, 0),
    "antitranspose": (0, -1, -1, 0), "third": (0.5, 0.866, -0.866, 0.5),
}  # fmt: skip
"""Display matrices, as (a, b, c, d) of x' = ax + cy, y' = bx + dy."""


def clip(
    path: Path, codec: str, pix_fmt: str = "yuv420p", *, matrix: tuple[float, ...] | None = None,
    stretch: Fraction | None = None, space: int | None = None, full: bool = False, curve: int | None = None,
    primaries: int | None = None, interlaced: bool = False, alpha: bool = False,
) -> Path:  # fmt: skip
    """Write three frames of a clip."""
    options = {"x264-params": "tff=1:interlaced=1"} if interlaced else {}
    options |= {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        if matrix:
            a, b, c, d = (round(value * 65536) for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if stretch:
            stream.codec_context.sample_aspect_ratio = stretch
        if alpha and path.suffix in (".webm", ".mkv"):
            stream.metadata["alpha_mode"] = "1"
        context = stream.codec_context
        for name, value in (("colorspace", space), ("color_trc", curve), ("color_primaries", primaries)):
            if value is not None:
                setattr(context, name, value)
        if full:
            context.color_range = 2
        picture = np.asarray(ramp())
        for i in range(3):
            pixels = np.roll(picture, 5 * i, axis=1)
            if alpha:
                clear = np.linspace(0, 255, WIDTH).round().astype(np.uint8)
                pixels = np.dstack([pixels, np.broadcast_to(clear, pixels.shape[:2])])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if alpha else "rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=space, dst_color_range=2 if full else None)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def clips(folder: Path) -> Iterator[Path]:
    """Write clips of every container and codec, each with one thing that it can say."""
    for kind in ("mp4", "mov", "mkv"):
        for name, matrix in MATRICES.items():
            yield clip(folder / f"{name}.{kind}", "libx264", matrix=matrix)
        for space in (1, 5, 6, 7, 9):
            yield clip(folder / f"space_{space}.{kind}", "libx264", space=space)
        yield clip(folder / f"full.{kind}", "libx264", "yuvj420p", full=True)
        yield clip(folder / f"full_bt709.{kind}", "libx264", "yuvj420p", full=True, space=1)
        yield clip(folder / f"wide.{kind}", "libx264", stretch=Fraction(4, 3))
        yield clip(folder / f"tall.{kind}", "libx264", stretch=Fraction(8, 9))
        yield clip(
            folder / f"turned_wide.{kind}", "libx264", stretch=Fraction(4, 3), matrix=MATRICES["quarter"]
        )
        yield clip(folder / f"turned_422.{kind}", "libx264", "yuv422p", matrix=MATRICES["antitranspose"])
        for pix_fmt in ("yuv420p10le", "yuv422p10le", "yuv444p"):
            yield clip(folder / f"{pix_fmt}.{kind}", "libx264", pix_fmt, space=1)
    yield ASSETS / "hevc_10_bit.mp4"
    yield clip(folder / "mpeg4.mp4", "mpeg4", matrix=MATRICES["hflip"])
    yield clip(folder / "photo.mov", "mjpeg", "yuvj422p", full=True)
    yield clip(folder / "vp9.mp4", "libvpx-vp9", matrix=MATRICES["transpose"], space=1)
    yield clip(folder / "vp9.webm", "libvpx-vp9", space=1)
    yield ASSETS / "av1_turned.mp4"
    yield ASSETS / "vp9_wide.webm"
    for codec in ("libvpx", "libvpx-vp9"):
        for kind in ("webm", "mkv"):
            yield clip(folder / f"{codec}_alpha.{kind}", codec, "yuva420p", alpha=True)
    for codec, pix_fmt in (("prores_ks", "yuva444p10le"), ("qtrle", "argb"), ("png", "rgba")):
        yield clip(folder / f"{codec}.mov", codec, pix_fmt, alpha=True)
        yield clip(folder / f"{codec}_flipped.mov", codec, pix_fmt, alpha=True, matrix=MATRICES["vflip"])
    yield clip(folder / "ffv1.mkv", "ffv1", "yuva420p", alpha=True)
    yield clip(folder / "ffv1_440.mkv", "ffv1", "yuv440p")
    yield clip(folder / "interlaced.mp4", "libx264", interlaced=True)
    yield clip(folder / "pq.mp4", "libx264", "yuv420p10le", space=9, curve=16, primaries=9)
    yield clip(folder / "hlg.mkv", "libx264", "yuv420p10le", space=9, curve=18, primaries=9)
    yield clip(folder / "p3.mov", "libx264", space=1, primaries=12)
