"""Captioned pictures and clips: how a run states them, and what they are for its model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ...errors import Mistakes, UserError
from ...files import Hashes
from ...options import NOT_LEARNED, ByName, check_ranges, option
from .. import buckets
from ..buckets import Buckets
from ..dataset import Index
from ..sizes import Bucket, TakesSizes
from ..sources import Findings
from .crops import Clips
from .index import MEDIA, CaptionDataset, CaptionIndex, assign_buckets
from .item import CaptionSource, Items
from .lists import LineLists
from .scan import scan, scan_sound
from .sources import Folder

if TYPE_CHECKING:
    from ...families.base import Family

Source = Folder | LineLists
"""Those of this package; one of another package is any `CaptionSource`."""


class CaptionData:
    """Captioned pictures and clips, each brought to the size of a bucket."""

    def __init__(self, data: "Data", family: "Family", seed: int, mistakes: Mistakes):
        self.data, self.family, self.seed = data, family, seed
        self.sizes: Sequence[Bucket] | None = None
        self.notes: list[str] = []
        with mistakes.noted():
            self.sizes = buckets.resolve(data.buckets, family.limits)
            self.notes += family.fit_sizes(self.sizes)

    @property
    def media(self) -> Sequence[str]:
        brought = [name for source in self.data.sources for name in source.brings]
        return list(dict.fromkeys([*MEDIA, *brought]))

    @property
    def brings(self) -> Sequence[str]:
        return ["caption", *self.media]

    def fit(self, family: TakesSizes) -> None:
        if self.sizes is not None:
            family.fit_sizes(self.sizes)

    def index(
        self, hashes: Hashes, mistakes: Mistakes, look: Callable[[Index], None] | None = None
    ) -> CaptionIndex:
        findings = Findings()
        found = scan_sound(self.data.sources, Path.cwd(), hashes, findings)
        mistakes.errors += map(UserError, findings.mistakes)
        placed: CaptionIndex | None = None
        if self.sizes is not None and (found.items or not findings.mistakes):
            with mistakes.noted():
                placed = assign_buckets(found, self.sizes, self.data)
                if not findings.mistakes:
                    self._check_media(found.items)
        if placed is None or look is None:
            mistakes.raise_all()
        assert placed is not None, self.sizes
        index = replace(placed, notes=[*self.notes, *placed.notes]).hashed(hashes)
        if look is not None:
            look(index)
            mistakes.raise_all()
        return index

    def _check_media(self, items: Items) -> None:
        """Raise UserError for items that lack a medium which stages need, and note those that none needs."""
        needed = {need for stage in self.family.stages for need in stage.needs}
        for name, files in items.media.items():
            has = [i for i, file in enumerate(files) if file]
            if name == "first_frame":
                self._check_first_frames(items, has)
            elif name not in needed:
                self.notes.append(f"{name}: sources state it and nothing reads it here")
            elif len(has) < len(items):
                lacks = next(i for i, file in enumerate(files) if not file)
                raise UserError(
                    f"{items.wheres[lacks]}: {items.ids[lacks]} has no {name}, which this run needs of every "
                    f"sample ({len(items) - len(has)} lack it); state it, or leave out what needs it"
                )

    def _check_first_frames(self, items: Items, has: Sequence[int]) -> None:
        """Raise UserError for pictures of a source that stand for first frames where that cannot be."""
        if not has:
            return
        if all(medium.name != "first_frame" for medium in self.family.media):
            self.notes.append("pictures that sources state for first frames are not used: none are given")
            return
        where = f"{items.wheres[has[0]]}: {items.open(has[0], 'first_frame').name}"
        if not any("first_frame" in stage.needs for stage in self.family.stages):
            raise UserError(
                f"{where} stands for a first frame, but this model is given the "
                "clip's own; set images: null in data.sources"
            )
        if self.data.crop != "center" or self.data.window != "head":
            raise UserError(
                f"{where} stands for the first frame of a clip that is shown from "
                "elsewhere; set data.window: head and data.crop: center, or images: null in data.sources"
            )

    def dataset(self, index: Index) -> CaptionDataset:
        assert isinstance(index, CaptionIndex), type(index)
        return CaptionDataset(index, self.data, self.data.variants, self.seed)


@option
class Data(Clips):
    """Captioned pictures and clips."""

    name: Literal["captions"] = "captions"

    sources: Annotated[list[Annotated[Source, ByName("folder", CaptionSource)]], NOT_LEARNED]
    """Where captioned pictures and clips lie; all of them are mixed."""
    buckets: Buckets
    """Sizes that samples are brought to."""
    batch_size: int = 1
    """Samples the optimizer sees in a step, over all devices and micro-batches."""
    cache: Annotated[Path | None, NOT_LEARNED] = Path(".cache")
    """Folder of encoded latents and texts, shared between runs; null: encode in every step."""
    variants: int = 1
    """How many random windows and crops of a sample are cached; training draws one of them each time."""
    num_workers: Annotated[int | None, NOT_LEARNED] = None
    """Processes that read ahead; absent: none when all stages are cached, else 2, or 1 on one core."""

    def __post_init__(self) -> None:
        check_ranges(self, batch_size="[1, inf)", variants="[1, inf)", num_workers="[0, inf)")
        if not self.sources:
            raise ValueError("sources is empty; name at least one folder")

    @property
    def drawn(self) -> bool:
        """Whether windows or crops are drawn at random."""
        return "random" in (self.window, self.crop)

    def scan(self, memo: Hashes) -> None:
        """Find the mistakes in the data alone, where nothing is known of the model."""
        scan(self.sources, Path.cwd(), memo)

    def bind(self, family: "Family", seed: int, folder: Path, mistakes: Mistakes) -> CaptionData:
        """Hold the data against a model; `folder` is where facts about files are remembered."""
        return CaptionData(self, family, seed, mistakes)
