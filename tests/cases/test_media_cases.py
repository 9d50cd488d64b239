"""Small pictures and clips that users met, and what is right of each."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from omnitune.data.captions.crops import Clips
from omnitune.data.captions.index import assign_buckets
from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import Folder
from omnitune.data.media import probe, read_frames, read_image
from omnitune.data.sizes import Bucket
from omnitune.files import Hashes

HERE = Path(__file__).parent
RED, GREEN, DARK, WHITE = (198, 28, 29), (28, 178, 39), (19, 19, 19), (255, 255, 255)


def notes(case, tmp_path):
    found = scan([Folder(path=Path(case))], HERE, Hashes(tmp_path))
    return "\n".join(
        assign_buckets(found, [Bucket(1, 64, 64), Bucket(2, 64, 64)], Clips(short="shorter")).notes
    )


def corners(frame):
    return [tuple(map(int, frame[y, x])) for y in (6, -7) for x in (6, -7)]


def ramp():
    """What the pictures of two of the cases show."""
    return read_image(HERE / "picture-big-metadata/bigtext.png")


@pytest.mark.parametrize(("name", "difference"), [("p3", 13), ("adobe", 12), ("prophoto", 28)])
def test_profiles_are_converted(name, difference):
    path = HERE / f"picture-icc/icc_{name}.png"
    with Image.open(path) as image:
        source = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        wanted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        stored = np.asarray(image).astype(int)
    assert (read_image(path)[0] == np.asarray(wanted)).all()
    assert np.abs(stored - read_image(path)[0]).mean() == pytest.approx(difference, abs=1)


def test_metadata_of_more_than_a_megabyte_are_read():
    assert (read_image(HERE / "picture-big-metadata/bigitxt.png") == ramp()).all()
    # Its profile is Display P3, which is converted as a small one is.
    wanted = read_image(HERE / "picture-icc/icc_p3.png")
    assert (read_image(HERE / "picture-big-metadata/bigicc.png") == wanted).all()


def test_contents_decide_and_not_names():
    for path in sorted((HERE / "picture-jpeg-named-webp").glob("still_*[fp]")):
        assert probe(path).kind == "image"
        assert np.abs(read_image(path).astype(int) - ramp()).mean() < 8, path.name


def test_several_frames_under_the_name_of_a_picture_are_a_clip_or_noted(tmp_path):
    told = notes("picture-apng-named-png", tmp_path)
    assert "1 file is of several frames (PNG), of which the first is shown as a picture" in told
    assert probe(HERE / "picture-apng-named-png/awebp.jpg").num_frames == 3


def test_enlarging_and_cropping_are_noted(tmp_path):
    told = notes("picture-upscaled", tmp_path).splitlines()
    assert told == [
        "2 samples are enlarged more than 2 times; give larger files, or smaller data.buckets: "
        "picture-upscaled/pano.png, picture-upscaled/tiny.png",
        "1 sample is cropped to less than 50%; crop them yourself, or add a bucket of their shape: "
        "picture-upscaled/pano.png",
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hflip", [GREEN, RED, DARK, DARK]),
        ("vflip", [DARK, DARK, RED, GREEN]),
        ("transpose", [RED, DARK, GREEN, DARK]),
        ("antitranspose", [DARK, GREEN, DARK, RED]),
    ],
)
def test_mirrored_clips_are_mirrored(name, wanted):
    assert corners(read_frames(HERE / f"clip-mirrored/fl_{name}.mp4", [0])[0]) == wanted


@pytest.mark.parametrize("name", ["alpha8", "alpha9"])
def test_what_is_transparent_in_webm_is_white(name):
    for frame in read_frames(HERE / f"clip-alpha-webm/{name}.webm", range(10)):
        assert corners(frame) == [RED, WHITE, RED, WHITE]


@pytest.mark.parametrize("kind", ["webm", "mkv"])
def test_frames_that_nobody_sees_are_not_counted(kind):
    path = HERE / f"clip-vp8-altref/vp8alt.{kind}"
    found = probe(path)
    assert (found.num_frames, found.fps, found.times) == (50, 16.0, ())
    for frames in ([*range(50)], [2], [31, 17]):
        shown = read_frames(path, frames)[..., 0].mean(1).reshape(len(frames), 6, -1).mean(-1) > 128
        assert (shown @ (1 << np.arange(6))).tolist() == frames
