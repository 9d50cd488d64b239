"""Prepare a small pretrained vision-language model, and questions about the categories of Fluent emoji.

The npm packages `@lobehub/fluent-emoji-3d` and `unicode-emoji-json` lie unpacked in PACKAGES; then

    pip install emoji
    python recipes/vlm/questions.py PACKAGES vlm-work

writes vlm-work/model (SmolLM2-135M and EfficientNet-Lite0 with a random projector between them), train.json,
held_out.json, and shuffled.json: the held-out questions, each with the picture of another. Of a concept,
whatever its gender, direction or colour, one picture is taken, so that no variant is in the other split.
"""

import argparse
import json
import random
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from base import PATCH, build_vlm  # type: ignore[import-not-found]
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "pocket"))
from prepare import concept  # type: ignore[import-not-found]

NUM_TRAINED, NUM_HELD_OUT, SEED = 80, 20, 0
"""Pictures of a category: at most so many, exactly so many."""
IMAGE_SIZE = 160  # pixels a side: 25 tokens, where 224 pixels are 49
SYSTEM, QUESTION = "Name the category.", "<image>What is this?"
KEYCAP = re.compile(r"^keycap .+")

Row = tuple[str, str]
"""Name of a picture's file, and its category."""


def categories(packages: Path) -> dict[str, dict[str, Path]]:
    """Category -> concept -> its first picture, of all emoji without a skin tone."""
    pictures = {
        path.stem.replace("-fe0f", "").lstrip("0"): path
        for path in sorted(packages.glob("fluent-emoji-3d/package/assets/*.webp"))
    }
    told = json.loads(
        (packages / "unicode-emoji-json/package/data-by-emoji.json").read_text(encoding="utf-8")
    )
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    seen: set[str] = set()
    for characters, facts in told.items():
        path = pictures.get("-".join(f"{ord(c):x}" for c in characters if c != "\ufe0f"))
        shown = concept(KEYCAP.sub("keycap", facts["name"]))
        if path is not None and shown not in seen:
            seen.add(shown)
            found[facts["group"].lower().replace("&", "and")][shown] = path
    return found


def split(found: dict[str, dict[str, Path]], folder: Path) -> dict[str, list[Row]]:
    """Write the pictures that are chosen on white, and tell which split each is in."""
    draw = random.Random(SEED)
    folder.mkdir(parents=True)
    rows: dict[str, list[Row]] = {"train": [], "held_out": []}
    for category, concepts in sorted(found.items()):
        paths = sorted(concepts.values())
        draw.shuffle(paths)
        for i, path in enumerate(paths[: NUM_HELD_OUT + NUM_TRAINED]):
            write_on_white(path, folder / f"{path.stem}.png")
            rows["held_out" if i < NUM_HELD_OUT else "train"].append((f"{path.stem}.png", category))
    draw.shuffle(rows["held_out"])
    return rows


def write_on_white(source: Path, path: Path) -> None:
    with Image.open(source) as image:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
    white.convert("RGB").save(path)


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Each answer with the picture of another row."""
    order = list(range(len(rows)))
    random.Random(SEED).shuffle(order)
    following = {order[i - 1]: order[i] for i in range(len(order))}
    return [(rows[following[i]][0], category) for i, (_, category) in enumerate(rows)]


def write_questions(path: Path, rows: Sequence[Row]) -> None:
    items = [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": category},
            ],
            "images": [f"pictures/{name}"],
        }
        for name, category in rows
    ]
    path.write_text(json.dumps(items, indent=1))
    print(f"{path}: {len(items)} questions, {len({category for _, category in rows})} answers")


def write_model(base: Path, folder: Path) -> None:
    """Copy the base, and let it see smaller pictures."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["image_seq_length"] = (IMAGE_SIZE // PATCH) ** 2
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"shortest_edge": IMAGE_SIZE}
    processor["image_processor"]["crop_size"] = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", type=Path, help="folder in which both packages are unpacked")
    parser.add_argument("out", type=Path, help="new folder")
    arguments = parser.parse_args()
    if not (found := categories(arguments.packages)):
        parser.error(f"{arguments.packages}: holds no fluent-emoji-3d/package/assets/*.webp; unpack it there")
    rows = split(found, arguments.out / "pictures")
    write_questions(arguments.out / "train.json", rows["train"])
    write_questions(arguments.out / "held_out.json", rows["held_out"])
    write_questions(arguments.out / "shuffled.json", shuffled(rows["held_out"]))
    write_model(build_vlm(), arguments.out / "model")


if __name__ == "__main__":
    main()
