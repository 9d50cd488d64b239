"""The bundled style, black silhouettes, is what `omnitune/assets/README.md` and its recipe say."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from omnitune.data import media
from omnitune.data.captions.item import Items
from omnitune.data.captions.scan import scan
from omnitune.data.captions.sources import Folder
from omnitune.files import Hashes
from omnitune.testing.tiny import train_tokenizer

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "omnitune" / "assets"
STYLE = ASSETS / "style"
COUNTS = {"train": 191, "validation": 53}
PHRASE = ", 3d emoji"


def items(split: str) -> Items:
    with TemporaryDirectory() as memo:  # raises when anything is wrong with the folder
        found = scan([Folder(path=STYLE / split)], ROOT, Hashes(Path(memo)))
    assert not found.notes
    return found.items


def concepts(split: str) -> list[str]:
    captions = [item.caption for item in items(split)]
    assert all(caption.endswith(PHRASE) for caption in captions)
    return [caption.removesuffix(PHRASE) for caption in captions]


@pytest.mark.parametrize("split", COUNTS)
def test_every_picture_is_a_black_shape_on_white(split: str) -> None:
    found = items(split)
    assert len(found) == COUNTS[split]
    for i, item in enumerate(found):
        pixels = media.read_image(found.open(i))
        assert pixels.shape == (1, 128, 128, 3)
        assert (pixels == pixels[..., :1]).all(), item.id  # no colour
        assert (pixels[0, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all(), item.id  # white corners
        assert 0.05 < np.mean(pixels < 128) < 0.75, item.id


def test_no_concept_is_in_both_splits() -> None:
    assert not set(concepts("train")) & set(concepts("validation"))


def test_bundled_pictures_are_those_that_the_recipe_chose() -> None:
    with (ROOT / "recipes" / "style" / "chosen.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    credits = (STYLE / "AUTHORS.txt").read_text(encoding="utf-8")
    for split in COUNTS:
        chosen = [row for row in rows if row["split"] == split]
        assert sorted(row["concept"] for row in chosen) == sorted(concepts(split))
        assert all(row["file"] in credits for row in chosen)
        assert all(f"{split}/{item.file}  " in credits for item in items(split))


def test_captions_take_at_most_24_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    captions = [item.caption for split in COUNTS for item in items(split)]
    train_tokenizer(captions, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert max(len(tokenizer(caption).input_ids) for caption in captions) <= 24


def test_style_is_small_and_its_dedication_ships() -> None:
    assert sum(path.stat().st_size for path in STYLE.rglob("*") if path.is_file()) < 2_000_000
    text = (ASSETS / "LICENSE-openclipart.txt").read_text(encoding="utf-8")
    assert "Public Domain Dedication" in text
