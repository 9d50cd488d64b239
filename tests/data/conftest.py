"""Real media files, made on the spot; the brightness of a frame tells its index."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

DARKEST, STEP = 20, 5


def _frame(index: int, height: int, width: int) -> Any:
    return np.full((height, width, 3), DARKEST + STEP * index, np.uint8)


class Make:
    """Writes files below a folder."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str, text: str) -> Path:
        path = self.path(name)
        path.write_text(text)
        return path

    def image(self, name: str, height: int = 8, width: int = 12, **options: Any) -> Path:
        path = self.path(name)
        Image.fromarray(_frame(0, height, width)).save(path, **options)
        return path

    def animation(self, name: str, frames: int = 6, height: int = 8, width: int = 12, ms: int = 40) -> Path:
        path = self.path(name)
        images = [Image.fromarray(_frame(i, height, width)) for i in range(frames)]
        lossless = {"lossless": True} if name.endswith("webp") else {}
        images[0].save(path, save_all=True, append_images=images[1:], duration=ms, loop=0, **lossless)
        return path

    def clip(
        self,
        name: str,
        frames: int = 40,
        height: int = 32,
        width: int = 48,
        fps: int = 24,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        rotation: float = 0,
        key_every: int = 12,
        container: dict[str, str] | None = None,
        times: Callable[[int], int] = lambda index: index,
        title: str = "",
        **options: str,
    ) -> Path:
        path = self.path(name)
        with av.open(str(path), "w", options=container or {}) as out:
            out.metadata["title"] = title
            stream = out.add_stream(codec, rate=fps, options={"g": str(key_every), **options})
            stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
            if rotation:
                stream.set_display_rotation(rotation)
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(_frame(i, height, width), format="rgb24")
                frame.pts = times(i)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return Make(tmp_path)


@pytest.fixture
def shown() -> Callable[[Any], list[int]]:
    """Which frames these pixels (N, H, W, 3) are."""
    return lambda frames: [round((frame.mean() - DARKEST) / STEP) for frame in frames]
