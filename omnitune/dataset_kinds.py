"""What a run is trained on, held against its model: captioned pictures and clips, or conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import buckets
from .data.captions.index import Dealt, Index, Samples, deal
from .data.captions.item import Item
from .data.captions.options import Data
from .data.captions.sources import scan
from .data.conversations.options import Conversations
from .data.conversations.rows import TalkIndex, TalkSamples, Tokens, deal_talks
from .data.conversations.sources import ConversationScan, read_conversations
from .data.sizes import Bucket
from .errors import Mistakes, UserError
from .files import Hashes
from .sampling import Validation, check_frames, check_pictures, parse_bucket

if TYPE_CHECKING:
    from .config.run import Run
    from .families.base import Family


OF_PIXELS = ("size", "last_images", "negative_prompt", "steps", "guidance", "seed", "fps")
"""Options of validation that models which answer in text do not read."""


def refuse_vain(options: Validation, names: Sequence[str], why: str) -> None:
    """Raise UserError for options of validation that were changed in vain."""
    plain = Validation()
    if vain := [name for name in names if getattr(options, name) != getattr(plain, name)]:
        raise UserError("\n".join(f"validation.{name}: has no effect, {why}; remove it" for name in vain))


def look_through(data: Data | Conversations, memo: Hashes) -> None:
    """Find the mistakes in data alone."""
    if isinstance(data, Conversations):
        read_conversations(data.sources, Path.cwd(), memo)
    else:
        scan(data.sources, Path.cwd(), memo)


class Captions:
    """Captioned pictures and clips, each brought to the size of a bucket."""

    def __init__(self, run: "Run", data: Data, family: "Family", mistakes: Mistakes):
        self.run, self.data, self.family = run, data, family
        self.sizes: Sequence[Bucket] | None = None
        self.notes: list[str] = []
        with mistakes.noted():
            self.sizes = buckets.resolve(data.buckets, family.limits)
            self.notes += family.fit_sizes(self.sizes)
        with mistakes.noted():
            self.sample_size()
        with mistakes.noted():
            check_frames(run.validation, family)
        with mistakes.noted():
            refuse_vain(run.validation, ("max_tokens",), "the model generates pixels")

    def check_samples(self, options: "Validation", told: Mapping[str, str]) -> None:
        """Raise UserError if samples lack pictures that the model is given, or have some that it is not."""
        check_frames(options, self.family, told)
        check_pictures(options, told)

    def largest(self, index: Index) -> Bucket | None:
        """The largest bucket of the data; None where samples have no size."""
        return max(index.by_bucket, key=lambda bucket: bucket.size)

    def fit(self, family: "Family") -> None:
        """Fit another copy of the family to the run's sizes."""
        if self.sizes is not None:
            family.fit_sizes(self.sizes)

    def sample_size(self) -> Bucket | None:
        """The size that `validation.size` states, if any."""
        stated = self.run.validation.size
        return None if stated is None else self.size(stated, "validation.size")

    def size(self, text: str, where: str) -> Bucket:
        """Read a size; raises UserError for one that the model does not take."""
        bucket, limits = parse_bucket(text, where), self.family.limits
        nearest = Bucket(
            buckets.nearest_frames(bucket.frames, limits),
            *buckets.nearest_sides((bucket.height, bucket.width), limits),
        )
        if nearest != bucket:
            name = self.family.name
            raise UserError(f"{where}: {bucket} is not a size that {name} takes; the nearest is {nearest}")
        if limits.one_size and self.sizes and bucket not in self.sizes:
            raise UserError(f"{where}: {bucket}, but this run's positions are of {self.sizes[0]}; use that")
        return bucket

    def deal(self, memo: Hashes, mistakes: Mistakes) -> Dealt:
        """Find the items and their buckets."""
        with mistakes.noted():
            found = scan(self.data.sources, Path.cwd(), memo)
            if self.sizes is not None:
                dealt = deal(found, self.sizes, self.data)
                self._check_images(found.items)
        with mistakes.noted():
            check_pictures(self.run.validation)
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
                f"{stated.where}: {stated.image} stands for a first frame, but {self.run.model.path} is "
                "given the clip's own; set images: null in data.sources"
            )
        if self.data.crop != "center" or self.data.window != "head":
            raise UserError(
                f"{stated.where}: {stated.image} stands for the first frame of a clip that is shown from "
                "elsewhere; set data.window: head and data.crop: center, or images: null in data.sources"
            )

    def samples(self, index: Index) -> Samples:
        return Samples(index, self.data, self.run.seed)


class FoundTalks:
    """Conversations that were read, before anything of them is encoded."""

    def __init__(self, found: ConversationScan, data: Conversations, tokens: Tokens):
        self.found, self.data, self.tokens = found, data, tokens

    def index(self, hashes: Hashes) -> TalkIndex:
        packing = self.data.max_length if self.data.packing else None
        return deal_talks(
            self.found.items, self.tokens, hashes, packing=packing, by_length=self.data.group_by_length,
            notes=self.found.notes, where="data.sources",
        )  # fmt: skip


class Dialogues:
    """Conversations about pictures and clips, as tokens of the model's own template."""

    sizes: Sequence[Bucket] | None = None

    def __init__(self, run: "Run", data: Conversations, family: Any, mistakes: Mistakes, folder: Path):
        self.run, self.data, self.family = run, data, family
        self.notes: list[str] = []
        self.folder = folder
        if data.packing:
            with mistakes.noted():
                family.check_packing()
        with mistakes.noted():
            refuse_vain(run.validation, OF_PIXELS, "the model answers in text")
        if run.conditions:
            with mistakes.noted():
                raise UserError(
                    f"conditions: {run.conditions[0].name} has no effect on conversations; remove it"
                )

    def check_samples(self, options: "Validation", told: Mapping[str, str]) -> None:
        """Raise UserError for pictures that are not there, or that nothing is asked about."""
        refuse_vain(options, OF_PIXELS, "the model answers in text")
        check_pictures(options, told)

    def largest(self, index: Any) -> Bucket | None:
        return None

    def fit(self, family: "Family") -> None:
        """Nothing depends on the sizes of pictures."""

    def sample_size(self) -> Bucket | None:
        return None

    def size(self, text: str, where: str) -> Bucket:
        raise UserError(f"{where}: has no effect, the model answers in text; leave it out")

    def deal(self, memo: Hashes, mistakes: Mistakes) -> FoundTalks:
        """Read and check every conversation."""
        with mistakes.noted():
            found = read_conversations(self.data.sources, Path.cwd(), memo)
        with mistakes.noted():
            check_pictures(self.run.validation)
        with mistakes.noted():
            tokens = self.tokens
        mistakes.raise_all()
        return FoundTalks(found, self.data, tokens)

    @cached_property
    def tokens(self) -> Tokens:
        """Conversations as the model's own processor encodes them."""
        return Tokens(self.family.chat(self.data), self.folder)

    def samples(self, index: TalkIndex) -> TalkSamples:
        return TalkSamples(index, self.tokens, self.run.seed)
