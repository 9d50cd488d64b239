"""Bring the colours of a picture to sRGB, by what it says of them."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

SPACES = {"L": ("GRAY", "RGB "), "RGB": ("RGB ",), "CMYK": ("CMYK",)}
"""Mode of a picture -> what its profile may describe; viewers pass over any other."""
D65, C = (0.3127, 0.329), (0.31, 0.316)
PRIMARIES = {
    1: (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, *D65),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *C),
    5: (0.64, 0.33, 0.29, 0.6, 0.15, 0.06, *D65),
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *D65),
    7: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *D65),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *D65),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *D65),
    22: (0.63, 0.34, 0.295, 0.605, 0.155, 0.077, *D65),
}
"""Code of ITU-T H.273 -> x and y of red, green, blue and white."""
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CURVES = {1: (2.4,), 4: (2.2,), 5: (2.8,), 6: (2.4,), 8: (1.0,), 13: SRGB_CURVE, 14: (2.4,), 15: (2.4,)}
"""Code of H.273 -> a parametric curve of ICC; screens show film curves as 2.4 (BT.1886)."""
HDR = {16: "PQ", 18: "HLG"}


class Colours(NamedTuple):
    """How a picture's numbers become sRGB."""

    profile: bytes | None
    """ICC; None: they are sRGB already, or taken to be."""
    note: str | None = None
    """What it says of its colours that is not obeyed."""


def colours_of(image: Any, chunks: dict[bytes, bytes]) -> Colours:
    """Read what a picture says of its colours; `chunks` are those of a png."""
    if coded := chunks.get(b"cICP"):
        return _coded(coded)
    if embedded := image.info.get("icc_profile"):
        return Colours(embedded)
    if b"sRGB" in chunks or b"gAMA" not in chunks:
        return Colours(None)
    gamma, white_first = image.info["gamma"], image.info.get("chromaticity")
    if white_first is None and abs(gamma - 0.45455) < 1e-3:
        return Colours(None)  # writers state it who mean sRGB, and viewers take it so
    primaries = (*white_first[2:], *white_first[:2]) if white_first else PRIMARIES[1]
    if min(gamma, 1 / gamma if gamma else 0, *primaries) < 0.01:
        return Colours(None, "of impossible colours (gAMA, cHRM), shown as sRGB")
    return Colours(matrix_profile(primaries, (1 / gamma,)))


def _coded(chunk: bytes) -> Colours:
    """Colours by the codes of video."""
    primaries, curve = chunk[0], chunk[1]
    if curve in HDR:
        return Colours(None, f"of HDR colours ({HDR[curve]}), shown as they stand, without tone mapping")
    if primaries not in PRIMARIES or curve not in CURVES or chunk[2:4] != b"\0\1":
        return Colours(None, f"of colours that are not converted (cICP {chunk.hex(' ')}), shown as sRGB")
    return Colours(matrix_profile(PRIMARIES[primaries], CURVES[curve]))


def to_srgb(image: Any, profile: bytes) -> Any | None:
    """Convert a picture (L, RGB or CMYK) to RGB; None if the profile is damaged or not of its kind."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space
        if space not in SPACES[image.mode]:
            return None
        image = image.convert("RGB") if image.mode == "L" and space == "RGB " else image
        # Not perceptual, to which lcms adds a compensation of black that viewers have not.
        intent, target = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, renderingIntent=intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


@lru_cache(maxsize=64)  # data have few profiles, and each takes milliseconds
def effect(mode: str, profile: bytes) -> Literal["some", "none", "damaged"]:
    """Whether a profile changes what is seen; most that are embedded are sRGB's own."""
    from PIL import Image, ImageChops

    lattice = Image.frombytes("L", (16, 16), bytes(range(256)))
    if mode != "L":
        lattice = Image.merge(mode, [lattice.rotate(90 * i) for i in range(len(mode))])
    found = to_srgb(lattice, profile)
    if found is None:
        return "damaged"
    difference = ImageChops.difference(found, lattice.convert("RGB"))
    return "some" if max(difference.tobytes()) > 1 else "none"


def matrix_profile(primaries: Sequence[float], curve: Sequence[float]) -> bytes:
    """Make an ICC profile of x and y of red, green, blue and white, and a parametric curve."""
    to_xyz, start = _to_d50(primaries), b"XYZ \0\0\0\0"
    trc = struct.pack(">4s4xH2x", b"para", 3 if len(curve) > 1 else 0) + _fixed(*curve)
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags = {name: start + _fixed(*to_xyz[:, i].tolist()) for i, name in enumerate(names)}
    tags[b"wtpt"] = start + _fixed(0.9642, 1.0, 0.8249)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), trc)
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(value))
        body += value
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", offset + len(body), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp",
        _fixed(0.9642, 1.0, 0.8249),
    )  # fmt: skip
    return header + struct.pack(">I", len(tags)) + table + body


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _to_d50(primaries: Sequence[float]) -> "Matrix":
    """The matrix from linear RGB to XYZ, adapted to D50 as profiles want it (Bradford)."""
    import numpy as np

    x, y = np.array(primaries[0::2]), np.array(primaries[1::2])
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])  # of red, green, blue and white
    to_xyz = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (cones @ [0.9642, 1.0, 0.8249]) / (cones @ xyz[:, 3])
    found: Matrix = np.linalg.inv(cones) @ (scale[:, None] * cones) @ to_xyz
    return found
