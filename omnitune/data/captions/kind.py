"""Captioned pictures and clips: how a run states them, and what they are for its model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ...errors import Mistakes, UserError
from ...files import Hashes
from ...options import NOT_LEARNED, ByName, option
from .. import buckets
from ..buckets import Buckets
from ..sizes import Bucket
from .crops import Clips
from .index import Dealt, Index, Samples, deal
from .item import Item
from .sources import Source, scan

if TYPE_CHECKING:
    from ...families.base import Family


class CaptionData:
    """Captioned pictures and clips, each brought to the size of a bucket."""

    def __init__(self, data: "Data", family: "Family", seed: int, mistakes: Mistakes):
        self.data, self.family, self.seed = data, family, seed
        self.sizes: Sequence[Bucket] | None = None
        self.notes: list[str] = []
        with mistakes.noted():
            self.sizes = buckets.resolve(data.buckets, family.limits)
            self.notes += family.fit_sizes(self.sizes)

    def fit(self, family: "Family") -> None:
        """Fit another copy of the family to the run's sizes."""
        if self.sizes is not None:
            family.fit_sizes(self.sizes)

    def scan(self, memo: Hashes, mistakes: Mistakes) -> Dealt:
        """Find the items and their buckets; raises UserError with every mistake."""
        with mistakes.noted():
            found = scan(self.data.sources, Path.cwd(), memo)
            if self.sizes is not None:
                dealt = deal(found, self.sizes, self.data)
                self._check_images(found.items)
        mistakes.raise_all()
        return replace(dealt, notes=[*self.notes, *dealt.notes])

    def _check_images(self, items: Sequence[Item]) -> None:
        """Raise UserError for pictures of a source that stand for first frames where that cannot be."""
        stated = next((item for item in items if item.image is not None), None)
        if stated is None:
            return
        if not self.family.pictures:
            self.notes.append("pictures that sources state for first frames are not used: none are given")
            return
        if not any("first_frame" in stage.needs for stage in self.family.stages):
            raise UserError(
                f"{stated.where}: {stated.image} stands for a first frame, but this model is given the "
                "clip's own; set images: null in data.sources"
            )
        if self.data.crop != "center" or self.data.window != "head":
            raise UserError(
                f"{stated.where}: {stated.image} stands for the first frame of a clip that is shown from "
                "elsewhere; set data.window: head and data.crop: center, or images: null in data.sources"
            )

    def dataset(self, index: Index) -> Samples:
        """Give the samples of an index to training."""
        return Samples(index, self.data, self.data.variants, self.seed)


@option
class Data(Clips):
    """Captioned pictures and clips."""

    name: Literal["captions"] = "captions"

    sources: Annotated[list[Annotated[Source, ByName("folder")]], NOT_LEARNED]
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
        for name in ("batch_size", "variants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {self.num_workers}")
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
        """Hold the data against a model; `folder` is where what is found out is remembered."""
        return CaptionData(self, family, seed, mistakes)
