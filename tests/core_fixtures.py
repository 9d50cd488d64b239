"""A folder with media and a run on a tiny Wan pipeline, for the tests of the core.

Test modules ask for it with `pytest_plugins = ["core_fixtures"]`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from omnitune import config
from omnitune.data import media
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.resolve import ResolvedRun, resolve_run


class Workplace:
    """The folder that a user works in: clips and pictures with captions, and run.yaml."""

    def __init__(self, root: Path, model: Path):
        self.root, self.model = root, model
        self.captions: dict[str, str] = {}
        self.file = root / "run.yaml"

    @property
    def clips(self) -> Path:
        return self.root / "clips"

    def add(
        self, name: str, caption: str | None = None, frames: int = 5, size: int = 16, seed: int = 0
    ) -> Path:
        """Write noise as a clip or picture, and its caption."""
        pixels = np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
        path = self.clips / name
        if path.suffix == ".png":
            media.write_image(path, pixels[0])
        else:
            media.write_video(path, pixels, fps=8)
        self.captions[name] = caption or f"a {path.stem}"
        self.write_captions()
        return path

    def remove(self, *names: str) -> None:
        for name in names:
            (self.clips / name).unlink()
            del self.captions[name]
        self.write_captions()

    def write_captions(self) -> None:
        rows = [{"file_name": name, "caption": caption} for name, caption in self.captions.items()]
        self.clips.mkdir(exist_ok=True)
        (self.clips / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(self, text: str | None = None) -> Path:
        """Write run.yaml; without a text, a run of four steps on everything in `clips`."""
        plain: dict[str, Any] = {
            "model": {"family": "wan", "path": str(self.model), "dtype": "float32"},
            "trainable": {"lora": {"rank": 2}},
            "data": {
                "sources": [{"path": "clips"}],
                "buckets": {"frames": [1, 5], "sizes": ["16x16"]},
                "batch_size": 2,
            },
            "schedule": {"steps": 4},
        }
        self.file.write_text(yaml.safe_dump(plain, sort_keys=False) if text is None else text)
        return self.file

    def run(self, *overrides: str) -> config.Run:
        return config.load(self.file, overrides)[0]

    def job(self, *overrides: str) -> ResolvedRun:
        return resolve_run(self.run(*overrides))


@pytest.fixture
def empty_workplace(tmp_path: Path, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A workplace without media, which is also the current folder."""
    monkeypatch.chdir(tmp_path)
    place = Workplace(tmp_path, tiny_wan)
    place.write()
    return place


@pytest.fixture
def workplace(empty_workplace: Workplace) -> Workplace:
    """A workplace with two clips and three pictures."""
    for i, name in enumerate(("fox.mp4", "boat.mp4", "apple.png", "rocket.png", "cat.png")):
        empty_workplace.add(name, seed=i)
    return empty_workplace


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(Parallel())
