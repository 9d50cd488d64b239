"""Captioned items with their buckets, and what stages and conditions are given of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ...batch import Batch
from ...errors import Mistakes, UserError
from ...files import Hashes, digest
from ...lazily import torch
from ...random import Draw
from ..columns import Digests, Repeated, Texts
from ..dataset import Inputs
from ..sizes import AnyBucket, Bucket
from ..sources import Scan, counted, listed, shown_hash
from ..view import View
from . import crops
from .crops import Clips
from .item import Items

if TYPE_CHECKING:
    from torch import Tensor

MEDIA = ("pixels", "first_frame", "last_frame")
"""What every item brings: all frames that are shown of it, or one of them."""


@dataclass(frozen=True)
class CaptionIndex:
    """Items in columns, sorted by id, each with its bucket, and the contents of every file as a hash."""

    items: Items
    buckets: Repeated[Bucket]
    notes: Sequence[str]
    hashes: Mapping[str, Digests] = field(default_factory=dict)
    """Of each item's file, as `pixels`, and of its further media by name; zeros where it has none."""

    @cached_property
    def by_bucket(self) -> Mapping[AnyBucket, Sequence[int]]:
        return dict(self.buckets.by_value())

    @property
    def largest(self) -> Bucket:
        return max(self.buckets.values, key=lambda bucket: bucket.size)

    def fingerprints(self) -> dict[str, str]:
        """Item id -> hash of its files, caption and bucket: what a run is trained on."""
        return {
            item.id: digest(
                self.hashes["pixels"][i],
                item.caption,
                str(self.buckets[i]),
                *(self.hashes[name][i] for name in sorted(item.media)),
            )
            for i, item in enumerate(self.items)
        }

    def renamed(self, places: Sequence[int], ids: Sequence[str]) -> "CaptionIndex":
        items = self.items.take(places)
        items.ids = Texts(ids)
        hashes = {name: Digests(column[i] for i in places) for name, column in self.hashes.items()}
        return CaptionIndex(items, Repeated(self.buckets[i] for i in places), self.notes, hashes)

    def caption_notes(self, cut_captions: Callable[[Sequence[str]], list[int]]) -> list[str]:
        cut = [self.items.ids[i] for i in cut_captions(self.items.captions)]
        if not cut:
            return []
        return [f"{counted(cut, 'caption')} longer than the model's text length and cut there: {listed(cut)}"]

    def hashed(self, hashes: Hashes) -> "CaptionIndex":
        """The index with the contents of every file as a hash."""
        items = self.items

        def of_all(medium: str) -> Iterator[str]:
            files = items.files if medium == "pixels" else items.media[medium]
            return (shown_hash(items.open(i, medium), hashes) if files[i] else "" for i in range(len(items)))

        return replace(self, hashes={name: Digests(of_all(name)) for name in ("pixels", *items.media)})


def assign_buckets(found: Scan[Items], sizes: Sequence[Bucket], clips: Clips) -> CaptionIndex:
    """Assign what a scan found to buckets, no file is read whole; raises UserError with every mistake."""
    placement = crops.place(found.items, sizes, clips)
    kept = [i for i, bucket in enumerate(placement.buckets) if bucket is not None]
    if not kept:
        raise UserError(f"data.sources: no sample is left to train on; {'; '.join(placement.notes)}")
    kept.sort(key=found.items.ids.row)  # the order of files and sources decides nothing
    homes = Repeated(bucket for i in kept if (bucket := placement.buckets[i]) is not None)
    return CaptionIndex(found.items.take(kept), homes, [*found.notes, *placement.notes])


class CaptionDataset:
    """Gives each sample's inputs, and the keys of what its files and captions are."""

    ragged: Sequence[str] = ()

    def __init__(self, index: CaptionIndex, clips: Clips, variants: int, seed: int):
        self.index, self.clips, self.variants, self.seed = index, clips, variants, seed

    @property
    def media(self) -> Collection[str]:
        return {*MEDIA, *self.index.items.media}

    def inputs(self, i: int, variant: int | str = 0) -> Inputs:
        item, bucket = self.index.items[i], self.index.buckets[i]
        draw = Draw(self.seed, [f"{item.id}#{variant}"])
        view = crops.view(item, bucket, self.clips, draw.row)
        return {"index": i, "caption": item.caption, "view": view}

    def variant(self, position: int) -> int:
        return int(Draw(self.seed, [position]).row("variant") * self.variants)

    def input_keys(self, inputs: Inputs) -> dict[str, str]:
        i, view = _shown(inputs)
        keys = {"caption": digest("caption", inputs["caption"])}
        for name in MEDIA:
            keys[name] = digest(self.index.hashes["pixels"][i], _view_of(name, view).key())
        for name in self.index.items[i].media:
            how = str(self.index.buckets[i]) if name == "first_frame" else view.key()
            keys[name] = digest(self.index.hashes[name][i], how)
        return keys

    def load(self, name: str, inputs: Inputs) -> Tensor:
        """Read a medium as (3, T, H, W) in [-1, 1], T = 1 for a single frame.

        A source's own media are shown through the window and crop of the item's pixels; its `first_frame`
        alone is a picture of its own, whose centre is shown.
        """
        i, view = _shown(inputs)
        items, bucket = self.index.items, self.index.buckets[i]
        brought = name in items.media and bool(items.media[name][i])
        if name == "first_frame" and brought:
            return crops.to_pixels(crops.covering_picture(items.open(i, name), bucket))
        if name in MEDIA:
            return crops.load_pixels(items.open(i), _view_of(name, view))
        assert brought, (items.ids[i], name)
        return crops.load_pixels(items.open(i, name), view)

    def entries(self) -> Iterator[tuple[Inputs, Bucket]]:
        for i, bucket in enumerate(self.index.buckets):
            for variant in range(self.variants):
                yield self.inputs(i, variant), bucket

    def shared_entries(self, needs: Sequence[str]) -> list[Inputs]:
        """The empty prompt, which is always there."""
        return [{**self.inputs(0), "caption": ""}] if "caption" in needs else []

    def row_metadata(self, inputs: Inputs) -> Batch:
        """`id`, `caption` and `fps`, which is 1 for a picture, whose frame is at 0 seconds."""
        item = self.index.items[_shown(inputs)[0]]
        fps = 1.0 if item.kind == "image" else self.clips.fps or item.fps
        return {"id": item.id, "caption": inputs["caption"], "fps": float(torch.tensor(fps))}

    def units(self, i: int) -> Mapping[str, int]:
        return {"index": i}

    def padding_row(self, rows: Sequence[Inputs]) -> None:
        """None: every row runs the same stages."""

    def decode_errors(self, i: int) -> list[UserError]:
        """The first of its variants that fails tells it."""
        mistakes = Mistakes()
        with mistakes.noted():
            for variant in range(self.variants):
                for name in ("pixels", *self.index.items[i].media):
                    self.load(name, self.inputs(i, variant))
        return mistakes.errors


def _shown(inputs: Inputs) -> tuple[int, View]:
    i, view = inputs["index"], inputs["view"]
    assert i is not None, inputs
    assert view is not None, inputs
    return i, view


def _view_of(name: str, view: View) -> View:
    """The view of one of MEDIA: all frames, or one of them."""
    ends = {"first_frame": view.indices[:1], "last_frame": view.indices[-1:]}
    return replace(view, indices=ends.get(name, view.indices))
