"""One captioned picture or clip."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Item:
    """One captioned picture or clip of a source, as found on disk and probed; nothing of it is decoded."""

    id: str
    """Stable name within the data: source path and file name, independent of where the source lies."""
    path: Path
    kind: Literal["image", "video"]
    caption: str
    width: int
    """Pixels as shown, that is after rotation metadata."""
    height: int
    num_frames: int
    """1 for an image."""
    fps: float
    """Frames per second; 0 for an image."""
    where: str
    """Where the item is stated (`clips/metadata.jsonl:12`), for messages."""
    times: tuple[float, ...] = ()
    """Seconds from the first frame to each, for a clip of variable rate; else frame k is at k / fps."""
    image: Path | None = None
    """Picture that image-to-video training is conditioned on, if another than the clip's first frame."""
