"""The bundled clips and pictures are what `omnitune/assets/README.md` says."""

import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

ASSETS = Path(__file__).parents[2] / "omnitune" / "assets"
KINDS = ("clips", "pictures")
SPLITS = ("train", "validation")
POCKET = ASSETS / "pocket-wan"


@dataclass(frozen=True)
class Item:
    path: Path
    caption: str

    @property
    def concept(self) -> str:
        return self.path.stem


def items(kind: str, split: str) -> list[Item]:
    folder = ASSETS / kind / split
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Item(folder / row["file_name"], row["caption"]) for row in rows]


def paths(kind: str) -> list[Path]:
    return [item.path for split in SPLITS for item in items(kind, split)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quarter_is_for_validation(kind: str) -> None:
    train, validation = (len(items(kind, split)) for split in SPLITS)
    assert train + validation >= 24
    assert validation >= (train + validation) / 4


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_listed_and_every_line_has_a_file(kind: str, split: str) -> None:
    listed = {item.path.name for item in items(kind, split)}
    present = {path.name for path in (ASSETS / kind / split).iterdir()}
    assert present == listed | {"metadata.jsonl"}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_unique_and_not_empty(kind: str) -> None:
    captions = [item.caption.strip() for split in SPLITS for item in items(kind, split)]
    assert all(captions)
    assert len(set(captions)) == len(captions)


def test_no_concept_is_in_both_splits() -> None:
    train, validation = ({item.concept for kind in KINDS for item in items(kind, split)} for split in SPLITS)
    assert not train & validation


@pytest.mark.parametrize("path", paths("clips"), ids=lambda path: path.stem)
def test_clip_decodes_and_moves(path: Path) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert frames.shape == (36, 128, 128, 3)
    # The largest mean change from the first frame; a still picture's is the codec's noise, below 1.
    assert np.abs(frames[1:].astype(float) - frames[0]).mean(axis=(1, 2, 3)).max() > 3


@pytest.mark.parametrize("path", paths("pictures"), ids=lambda path: path.stem)
def test_picture_opens(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert (image.mode, image.size) == ("RGB", (128, 128))


def test_assets_stay_small() -> None:
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    model = sum(size for path, size in sizes.items() if POCKET in path.parents)
    assert model <= 20_000_000
    assert sum(sizes.values()) - model < 8_000_000


def test_licence_of_the_artwork_ships() -> None:
    text = (ASSETS / "LICENSE-fluent-emoji.txt").read_text(encoding="utf-8")
    assert "MIT License" in text
    assert "Microsoft Corporation" in text
