"""The data of a run: its items, where each is dealt to, and what stages and conditions are given of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ...errors import Mistakes, UserError
from ...files import Hashes, digest
from ...random import Draw
from ...stages import MEDIA
from ..dataset import Inputs
from ..sizes import Bucket
from . import crops as views
from .crops import Clips
from .item import Item
from .sources import Scan, listed


@dataclass(frozen=True)
class Index:
    """What was found, and the contents of every file as a hash."""

    items: Sequence[Item]
    buckets: Sequence[Bucket]
    """Of each item."""
    hashes: Sequence[str]
    """Of each item's file."""
    image_hashes: Mapping[int, str]
    """Of the pictures that items state beside their clips."""
    notes: Sequence[str]
    """What the user should know, one line each."""

    @cached_property
    def by_bucket(self) -> dict[Bucket, list[int]]:
        found: dict[Bucket, list[int]] = {}
        for i, bucket in enumerate(self.buckets):
            found.setdefault(bucket, []).append(i)
        return found

    @property
    def largest(self) -> Bucket | None:
        """The largest bucket of the data; None where samples have no size."""
        return max(self.by_bucket, key=lambda bucket: bucket.size)

    def fingerprints(self) -> dict[str, str]:
        """Item id -> hash of its file, caption and bucket: what a run is trained on."""
        rows = zip(self.items, self.hashes, self.buckets, strict=True)
        return {
            item.id: digest(
                file_hash, item.caption, str(bucket), *([self.image_hashes[i]] if item.image else [])
            )
            for i, (item, file_hash, bucket) in enumerate(rows)
        }

    def caption_notes(self, cut_captions: Callable[[Sequence[str]], list[int]]) -> list[str]:
        """Name the items of which a family does not read the whole caption."""
        cut = [self.items[i].id for i in cut_captions([item.caption for item in self.items])]
        if not cut:
            return []
        number = "1 caption is" if len(cut) == 1 else f"{len(cut)} captions are"
        return [f"{number} longer than model.options.text_length and cut there: {listed(cut)}"]


@dataclass(frozen=True)
class Dealt:
    """The items that samples are made of, each with its bucket, sorted by id; no file is read whole."""

    placed: Sequence[tuple[Item, Bucket]]
    notes: Sequence[str]
    """What the user should know, one line each."""

    def index(self, hashes: Hashes) -> Index:
        return Index(
            [item for item, _ in self.placed],
            [bucket for _, bucket in self.placed],
            hashes.of_all(item.path for item, _ in self.placed),
            {i: hashes.of(item.image) for i, (item, _) in enumerate(self.placed) if item.image},
            self.notes,
        )


def deal(found: Scan, sizes: Sequence[Bucket], clips: Clips) -> Dealt:
    """Deal what a scan found into buckets; raises UserError with every mistake."""
    layout = views.plan(found.items, sizes, clips)
    layout.kept.sort(key=lambda placed: placed[0].id)  # the order of files and sources decides nothing
    if not layout.kept:
        raise UserError(f"data.sources: no sample is left to train on; {'; '.join(layout.notes)}")
    return Dealt(layout.kept, [*found.notes, *layout.notes])


class Samples:
    """Gives each sample's inputs, and the keys of what its files and captions are."""

    ragged: Sequence[str] = ()
    """What rows bring that differs in shape from row to row."""

    def __init__(self, index: Index, clips: Clips, variants: int, seed: int):
        self.index, self.clips, self.variants, self.seed = index, clips, variants, seed

    def inputs(self, i: int, variant: int | str = 0) -> Inputs:
        """`caption`, and the view of the item that its pixels are read through; `variant` keys its draws."""
        item, bucket = self.index.items[i], self.index.buckets[i]
        draw = Draw(self.seed, [f"{item.id}#{variant}"])
        return {"index": i, "caption": item.caption, "view": views.view(item, bucket, self.clips, draw.row)}

    def variant(self, position: int) -> int:
        """Which of the cached variants the row at a position of the run sees."""
        return int(Draw(self.seed, [position]).row("variant") * self.variants)

    def roots(self, inputs: Inputs) -> dict[str, str]:
        """A key for everything that a sample brings before stages run."""
        i, view = inputs["index"], inputs["view"]
        found = {"caption": digest("caption", inputs["caption"])}
        for name, shown in _shown(view).items():
            found[name] = digest(self.index.hashes[i], shown.key())
        if i in self.index.image_hashes:
            found["first_frame"] = digest(self.index.image_hashes[i], str(self.index.buckets[i]))
        return found

    def load(self, name: str, inputs: Inputs) -> Any:
        """What a stage needs of a sample: its caption, or one of MEDIA, read and decoded."""
        if name not in MEDIA:
            return inputs[name]
        item, bucket = self.index.items[inputs["index"]], self.index.buckets[inputs["index"]]
        if name == "first_frame" and item.image is not None:
            return views.to_pixels(views.covering_picture(item.image, bucket))
        return views.load_pixels(item, _shown(inputs["view"])[name])

    def every(self) -> Iterator[tuple[Inputs, Bucket]]:
        """What the cache is to hold: each variant of each item."""
        for i, bucket in enumerate(self.index.buckets):
            for variant in range(self.variants):
                yield self.inputs(i, variant), bucket

    def always(self, needs: Sequence[str]) -> list[Inputs]:
        """What the cache holds beside the items: the empty prompt."""
        return [{**self.inputs(0), "caption": ""}] if "caption" in needs else []

    def beside(self, inputs: Inputs) -> dict[str, Any]:
        """What a row has whatever stages there are; `fps` is 1 for a picture, whose frame is at 0 seconds."""
        item = self.index.items[inputs["index"]]
        fps = 1.0 if item.kind == "image" else self.clips.fps or item.fps
        return {"id": item.id, "caption": inputs["caption"], "fps": torch.tensor(fps)}

    def counts(self, i: int) -> Mapping[str, int]:
        """What objectives count the units of an item by."""
        return {"index": i}

    def filler(self, rows: Sequence[Inputs]) -> Inputs | None:
        """A row of weight 0 that a micro-batch needs beside its own."""
        return None

    def faults(self, i: int) -> list[UserError]:
        """Why an item cannot be decoded: the first of its variants that fails tells it."""
        mistakes = Mistakes()
        with mistakes.noted():
            for variant in range(self.variants):
                self.load("pixels", self.inputs(i, variant))
                if self.index.items[i].image is not None:
                    self.load("first_frame", self.inputs(i, variant))
        return mistakes.errors


def _shown(view: views.View) -> dict[str, views.View]:
    """The view of each of MEDIA: all frames, or one of them."""
    ends = {"first_frame": view.indices[:1], "last_frame": view.indices[-1:]}
    return {"pixels": view, **{name: replace(view, indices=indices) for name, indices in ends.items()}}
