"""What is shown of a picture or clip: which frames, how large, which part."""

import json
from dataclasses import asdict, dataclass

FILTER = "lanczos"
"""What resizes; part of every view's key. diffusers' image processors resize with it."""


@dataclass(frozen=True)
class Crop:
    """A part of a resized frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class View:
    """Frames, by their places in the clip, resized to (height, width), of which a part is cut out."""

    indices: tuple[int, ...]
    resize: tuple[int, int]
    crop: Crop

    def key(self) -> str:
        """Text that is equal for equal pixels of the same file: part of a cache key."""
        return json.dumps(asdict(self) | {"filter": FILTER}, sort_keys=True)
