"""What files say of their display is obeyed as by viewers, or noted."""

import shutil
import subprocess
from io import BytesIO

import av
import numpy as np
import pytest
from display import ADOBE, HEIGHT, MATRICES, P3, WIDTH, cmyk_profile, grey_profile
from display import clip as make_clip
from display import clips as make_clips
from display import pictures as make_pictures
from PIL import Image, ImageCms, ImageOps

from omnitune.data.media import Probe, probe, read_frames, read_image
from omnitune.data.sources import Findings, shown_hash
from omnitune.files import File, Hashes

CELL, COLUMNS = 64, 8
CODED = {"gamma_0.55": (1, 1 / 0.55), "gamma_0.55_p3": (12, 1 / 0.55), "gamma_1.0": (1, 1.0),
         "gamma_1.0_p3": (12, 1.0), "gamma_0.45455_p3": (12, 2.2), "coded_12_13": (12, None),
         "coded_9_13": (9, None), "coded_9_14": (9, 2.4), "coded_1_8": (1, 1.0),
         "coded_and_icc": (12, None)}  # fmt: skip
"""Name of a picture -> the primaries that it states (H.273) and its gamma, None for sRGB's curve."""
XYZ = {
    1: [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
    9: [[0.6370, 0.1446, 0.1689], [0.2627, 0.6780, 0.0593], [0.0, 0.0281, 1.0610]],
    12: [[0.4866, 0.2657, 0.1982], [0.2290, 0.6917, 0.0793], [0.0, 0.0451, 1.0439]],
}
"""Published matrices from linear RGB to XYZ, of white D65."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return list(make_pictures(tmp_path_factory.mktemp("pictures")))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return list(make_clips(tmp_path_factory.mktemp("clips")))


def stored(path):
    """The numbers of a picture on white, upright, as they stand."""
    with Image.open(path) as image:
        rgba = ImageOps.exif_transpose(image).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def apart(one, other):
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other).max()


def test_embedded_profiles_are_converted_as_by_lcms(pictures):
    profiles = {"p3": P3, "adobe": ADOBE, "grey_icc": grey_profile(1.4), "cmyk_icc": cmyk_profile()}
    checked = 0
    for path in pictures:
        profile = profiles.get(path.stem) or profiles.get(path.stem.removeprefix("icc_"))
        if profile is None:
            continue
        with Image.open(path) as image:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            wanted = ImageCms.profileToProfile(image, source, target, renderingIntent=1, outputMode="RGB")
        assert apart(read_image(path)[0], np.asarray(wanted)) == 0, path.name
        assert apart(read_image(path)[0], stored(path)) > 10, path.name
        checked += 1
    assert checked == 9


def test_colours_of_png_chunks_are_those_of_the_formulae(pictures):
    found = {path.stem: path for path in pictures}
    for name, (primaries, gamma) in CODED.items():
        value = stored(found[name]) / 255
        linear = (
            value**gamma
            if gamma
            else np.where(value < 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        )
        linear = linear @ np.array(XYZ[primaries]).T @ np.linalg.inv(XYZ[1]).T
        linear = linear.clip(0, 1)
        wanted = 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        assert apart(read_image(found[name])[0], wanted) < 1.6, name


def test_what_is_not_shown_anew_is_shown_as_ever(pictures, clips):
    for path in pictures:
        if probe(path).revision:
            assert apart(read_image(path)[0], stored(path)) > 0, path.name
        elif path.stem != "sixteen":  # stored() cannot
            assert apart(read_image(path)[0], stored(path)) == 0, path.name
    for path in clips:
        if probe(path).revision:
            continue
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        pixels = frame.to_ndarray(format="rgba").astype(int)
        pixels = (pixels[..., :3] * pixels[..., 3:] + 255 * (255 - pixels[..., 3:]) + 127) // 255
        assert apart(read_frames(path, [0])[0], np.rot90(pixels, round(frame.rotation / 90) % 4)) == 0, (
            path.name
        )


def test_pictures_are_shown_as_in_a_browser(pictures, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed here to compare with")
    # Chromium does not obey the orientation of a webp, which other viewers do.
    compared = [
        p for p in pictures if p.suffix != ".webp" or not p.stem.startswith(("orientation", "icc_turned"))
    ]
    page = "<style>body { margin: 0; background: #fff } img { position: absolute }</style>"
    for i, path in enumerate(compared):
        page += (
            f'<img src="{path.as_uri()}" style="left: {i % COLUMNS * CELL}px; top: {i // COLUMNS * CELL}px">'
        )
    (tmp_path / "page.html").write_text(page)
    size = f"{COLUMNS * CELL},{(len(compared) // COLUMNS + 3) * CELL}"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}",
         "--force-color-profile=srgb", "--force-device-scale-factor=1", f"--user-data-dir={tmp_path}",
         f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "page.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    for i, path in enumerate(compared):
        mine = read_image(path)[0]
        top, left = i // COLUMNS * CELL, i % COLUMNS * CELL
        difference = np.abs(shot[top : top + mine.shape[0], left : left + mine.shape[1]] - mine)
        assert difference.mean() <= 2, path.name
        assert difference.max() <= 8, path.name


def ffmpeg_command(binary, clips, folder):
    """One command that writes the raw frames of every clip into a folder."""
    command = [binary, "-v", "error"]
    for path in clips:
        sees_alpha = "vpx" in path.stem and "alpha" in path.stem
        command += [*(["-c:v", path.stem.removesuffix("_alpha")] if sees_alpha else []), "-i", str(path)]
    for i, path in enumerate(clips):
        square = "scale='if(gt(sar,1),round(iw*sar),iw)':'if(gt(sar,1),ih,round(ih/sar))'"
        scaled = ["-vf", square] if path.stem.endswith(("wide", "tall")) else []
        kind = "rgba" if has_alpha(path) else "rgb24"
        command += ["-map", f"{i}:v:0", *scaled, "-f", "rawvideo", "-pix_fmt", kind, str(folder / path.name)]
    return command


def has_alpha(path):
    return (
        "alpha" in path.stem or path.stem.split("_")[0] in ("prores", "qtrle", "png") or path.stem == "ffv1"
    )


def test_clips_are_shown_as_by_the_ffmpeg_command_line(clips, tmp_path):
    binary = shutil.which("ffmpeg")
    if binary is None:
        pytest.skip("no ffmpeg is installed here to compare with")
    subprocess.run(ffmpeg_command(binary, clips, tmp_path), check=True, capture_output=True)
    assert len(clips) >= 60
    for path in clips:
        found = probe(path)
        mine = read_frames(path, range(found.num_frames))
        assert mine.shape == (3, found.height, found.width, 3), path.name
        frames = np.fromfile(tmp_path / path.name, np.uint8).reshape(*mine.shape[:3], -1).astype(float)
        if has_alpha(path):
            frames = (frames[..., :3] * frames[..., 3:] / 255 + 255 - frames[..., 3:]).round()
        assert apart(mine, frames) == 0, path.name


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices_move_pixels_where_they_say(tmp_path, name):
    a, b, c, d = MATRICES[name]
    if name == "third":
        return
    path = make_clip(tmp_path / "clip.mp4", "libx264", "yuv444p", matrix=(a, b, c, d))
    plain = read_frames(make_clip(tmp_path / "plain.mp4", "libx264", "yuv444p"), [0])[0]
    shown = read_frames(path, [0])[0]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    across, down = a * x + c * y, b * x + d * y
    assert apart(shown[down - down.min(), across - across.min()], plain) <= 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pq.mp4", ["of a transfer curve (PQ) that is not converted", "of primaries (bt2020) that"]),
        ("hlg.mkv", ["of a transfer curve (HLG) that is not converted", "of primaries (bt2020) that"]),
        ("p3.mov", ["of primaries (Display P3) that are not converted"]),
        ("interlaced.mp4", ["interlaced, shown without deinterlacing"]),
        ("third.mkv", ["turned by no quarter, with black corners"]),
        ("space_9.mp4", []),
        ("wrong_kind.jpg", ["of a colour profile that is damaged or not of its kind"]),
        ("damaged.png", ["of a colour profile that is damaged or not of its kind"]),
        ("icc_p3.jpg", []),
    ],
)
def test_what_is_not_converted_is_noted(pictures, clips, name, told):
    notes = probe(next(path for path in [*pictures, *clips] if path.name == name)).notes
    assert len(notes) == len(told)
    assert all(note.startswith(start) for note, start in zip(notes, told, strict=True))


def test_only_what_is_shown_anew_is_keyed_anew(pictures, clips, tmp_path):
    hashes = Hashes(tmp_path)
    for path in [*pictures, *clips]:
        assert (shown_hash(File(path), hashes) != hashes.of(path)) == bool(probe(path).revision), path.name


def test_notes_are_told_once_for_all_files_that_they_are_true_of():
    findings = Findings()
    for i in range(5):
        findings.remark(f"{i}.png", Probe("image", 1, 1, 1, 0.0, notes=("blue",)))
    assert findings.told() == ["5 files are blue: 0.png, 1.png, 2.png and 2 more"]
