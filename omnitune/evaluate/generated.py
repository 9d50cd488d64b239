"""What a model of pictures and clips is measured by: data, and what is generated of its captions."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.captions.index import CaptionIndex
from ..data.captions.kind import Data
from ..data.sizes import Bucket
from ..errors import UserError
from ..families.base import Sampling
from ..objectives.held_out import QUANTILES
from ..progress import say
from ..random import permuted
from ..resolve import ResolvedRun, resolve_run
from ..sampling import given_frames
from .asked import Asked
from .data import captioned, held_out, num_trained, shown, to_8bit
from .subject import Subject
from .text_image import candidates_of

if TYPE_CHECKING:
    from ..data.media import Pixels


class Generated(Subject):
    """A run's weights, the data, and what is generated of its captions."""

    def __init__(self, asked: Asked):
        super().__init__(asked)
        if not isinstance(self.run.data, Data):
            raise UserError(
                f"{asked.folder}: its model answers in text, and pictures and clips are measured here; "
                "measure it by `omnitune evaluate`, or evaluate.evaluation"
            )
        if asked.size is not None:
            self.job.read_size(asked.size, "--size")
        self.index: CaptionIndex | None = None
        if asked.data is not None:
            self.job, self.index = self.read([asked.data], "--data")
            if seen := num_trained(self.index, asked.folder):
                say(f"--data: {seen} of {len(self.index.items)} items were trained on, not held out")

    def read(
        self, folders: Sequence[Path], where: str, pictures: bool = False
    ) -> "tuple[ResolvedRun, CaptionIndex]":
        """The run's model on other data, shown as the run shows its own."""
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{where}: {folder} is not a folder; give one of captioned pictures or clips")
        assert isinstance(self.run.data, Data)
        data = held_out(self.run.data, folders, self.asked.size, self.job.shape.limits)
        job = resolve_run(replace(self.job.run, data=data), self.job.earlier)
        if pictures:  # which are looked at, whether the model takes them or not
            job.bound.sizes = sorted({replace(b, frames=1) for b in job.bound.sizes or ()})
        index = job.index()
        assert isinstance(index, CaptionIndex), type(index)
        for note in index.notes:
            say(note)
        return job, index

    def described(self) -> dict[str, Any]:
        """How the numbers came about."""
        return {
            **super().described(),
            "fit": list(self.asked.fit),
            "samples": len(self.samples) if "samples" in vars(self) else 0,
            "sizes": sorted({str(one.bucket) for one in self.wanted}),
            "steps": self.options.steps,
            "guidance": self.options.guidance,
            "seed": self.options.seed,
            "quantiles": QUANTILES,
        }

    @cached_property
    def chosen(self) -> list[int]:
        """Which item's caption each sample has: each once in a fixed random order, then again."""
        assert self.index is not None
        items = len(self.index.items)
        number = items if self.asked.samples is None else self.asked.samples
        return [permuted(i % items, items, "evaluate", self.options.seed) for i in range(number)]

    @cached_property
    def wanted(self) -> list[Sampling]:
        options, index = self.options, self.index
        if index is not None:
            stated = [(index.items[i].caption, index.buckets[i]) for i in self.chosen]
        elif options.prompts:
            size = self.asked.size or options.size
            bucket = self.job.trained_bucket(self.asked.folder, size)
            assert bucket is not None
            number = self.asked.samples or len(options.prompts)
            stated = [(options.prompts[i % len(options.prompts)], bucket) for i in range(number)]
        else:
            raise UserError("--data: none is given, and the run's validation.prompts is empty; name a folder")
        return [
            Sampling(
                prompt,
                options.negative_prompt,
                bucket,
                options.steps,
                options.guidance,
                options.seed + i,
                options.fps,
                self._given(i, bucket),
            )
            for i, (prompt, bucket) in enumerate(stated)
        ]

    def _given(self, i: int, bucket: Bucket) -> dict[str, "Pixels"]:
        """The frames that sample i is given, (H, W, 3) each: those of the item whose caption it has."""
        if self.index is None:
            return given_frames(self.options, i % len(self.options.prompts), bucket)
        if bucket.frames == 1:
            return {}
        dataset = captioned(self.job, self.index)
        inputs = dataset.inputs(self.chosen[i])
        return {name: to_8bit(dataset.load(name, inputs))[0] for name in self.job.shape.pictures}

    @cached_property
    def samples(self) -> "list[Pixels]":
        """(T, H, W, 3) each."""
        say(f"generating {len(self.wanted)} samples of {self.options.steps} steps")
        made = self.family.sample(self.wanted, progress=sys.stderr.isatty())
        return [video.numpy() for video in made]

    @property
    def num_captions(self) -> int:
        """Of those that differ, among what is generated."""
        return len(candidates_of([one.prompt for one in self.wanted]))

    def real(self, i: int) -> "Pixels":
        """An item as the run sees it, (T, H, W, 3)."""
        assert self.index is not None
        return shown(self.job, self.index, i)

    def real_clips(self) -> "Iterator[Pixels]":
        assert self.index is not None
        for i, bucket in enumerate(self.index.buckets):
            if bucket.frames > 1:
                yield self.real(i)
