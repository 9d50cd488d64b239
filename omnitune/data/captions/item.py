"""Captioned pictures and clips: one of them, what sources of them are asked for, and a million in columns."""

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from ...files import Openable
from ..columns import Repeated, Rows, Texts
from ..sources import Source


@dataclass(frozen=True, slots=True)
class Item:
    """One captioned picture or clip of a source; nothing of it is decoded.

    A source states the first four fields, and media if it has any. If it knows the others too, it states all
    of them; if `num_frames` is 0, they are found by probing the file.
    """

    id: str
    """Stable name within the data: source and file name, independent of where the source lies."""
    file: str
    """What the source opens it by: a path in its folder, say."""
    caption: str
    where: str
    """Where the item is stated (`clips/metadata.jsonl:12`), for messages."""
    kind: Literal["image", "video"] = "image"
    width: int = 0
    """Pixels as shown, that is after rotation metadata."""
    height: int = 0
    num_frames: int = 0
    """1 for an image."""
    fps: float = 0.0
    """Frames per second; 0 for an image."""
    times: tuple[float, ...] = ()
    """Seconds from the first frame to each, for a clip of variable rate; else frame k is at k / fps."""
    media: Mapping[str, str] = field(default_factory=dict)
    """Name -> file of what else it brings (`control`), of the same length and shape, shown through the same
    window and crop. A `first_frame` is a picture that takes the place of the clip's own."""


class CaptionSource(Source[Item], Protocol):
    """A source of captioned pictures and clips."""

    @property
    def brings(self) -> Collection[str]:
        """Names of media that its items may have beside their pixels, known before anything is read."""


class Items(Rows[Item]):
    """Probed items in columns, and the sources that open them."""

    def __init__(self, sources: Sequence[CaptionSource], base: Path):
        self.sources, self.base = sources, base
        self.ids, self.files, self.captions, self.wheres = Texts(), Texts(), Texts(), Texts()
        self.source_numbers = Repeated[int]()
        self.widths, self.heights, self.lengths, self.rates = array("I"), array("I"), array("I"), array("d")
        self.times: dict[int, tuple[float, ...]] = {}
        """Of the few that have some."""
        self.media = {name: Texts() for source in sources for name in source.brings}
        """Name -> a file of each item, empty where it has none."""

    def append(self, source_number: int, item: Item) -> None:
        if item.times:
            self.times[len(self)] = item.times
        for name, files in self.media.items():
            files.append(item.media.get(name, ""))
        self.ids.append(item.id)
        self.files.append(item.file)
        self.captions.append(item.caption)
        self.wheres.append(item.where)
        self.source_numbers.append(source_number)
        self.widths.append(item.width)
        self.heights.append(item.height)
        self.lengths.append(item.num_frames)
        self.rates.append(item.fps)

    def __len__(self) -> int:
        return len(self.rates)

    def row(self, i: int) -> Item:
        media = {name: file for name, files in self.media.items() if (file := files.row(i))}
        return Item(
            self.ids.row(i), self.files.row(i), self.captions.row(i), self.wheres.row(i),
            "video" if self.rates[i] else "image", self.widths[i], self.heights[i], self.lengths[i],
            self.rates[i], self.times.get(i, ()), media,
        )  # fmt: skip

    def take(self, rows: Sequence[int]) -> "Items":
        """These rows, in this order."""
        found = Items(self.sources, self.base)
        for i in rows:
            found.append(self.source_numbers.row(i), self.row(i))
        return found

    def open(self, i: int, medium: str = "pixels") -> Openable:
        """The file of an item, or of one of its media."""
        files = self.files if medium == "pixels" else self.media[medium]
        return self.sources[self.source_numbers[i]].open(self.base, files[i])
