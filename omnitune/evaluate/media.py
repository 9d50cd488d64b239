"""What measures a model of pictures and clips: data, and what is generated of their captions."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data.captions.kind import Data
from ..data.sizes import Bucket
from ..errors import UserError
from ..progress import say
from ..random import permuted
from ..resolve import ResolvedRun, resolve_run
from ..sampling import Sampling, load_media
from .data import candidates_of, captioned, held_out, middle, num_trained, shown, to_8bit
from .evaluator import Evaluator
from .features import FeatureNetwork, load_features
from .results import Measure

if TYPE_CHECKING:
    from ..data.dataset import Index
    from ..data.media import Pixels


class MediaEvaluator(Evaluator):
    """A run's weights, the data, what is generated of their captions, and features of both."""

    gives = ("data", "samples", "clips", "features", "autoencoder")
    reads = ("size", "steps", "guidance", "seed", "features")

    def _read_data(self) -> None:
        if self.request.size is not None:
            self.job.read_size(self.request.size, "--size")
        if self.request.data is None:
            return
        self.job, self.index = self.read([self.request.data], "--data")
        if seen := num_trained(self.index, self.request.folder):
            say(f"--data: {seen} of {len(self.index.items)} items were trained on, not held out")

    def read(
        self, folders: Sequence[Path], where: str, pictures: bool = False
    ) -> "tuple[ResolvedRun, Index]":
        """Resolve the run on other data, shown as the run shows its own."""
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{where}: {folder} is not a folder; give one of captioned pictures or clips")
        stated = self.run.run.data
        assert isinstance(stated, Data), stated.name
        data = held_out(stated, folders, self.request.size, self.job.shape.limits)
        job = resolve_run(replace(self.run.run, data=data), self.run.earlier)
        if pictures:  # which are looked at, whether the model takes them or not
            job.bound.sizes = sorted({replace(b, frames=1) for b in job.bound.sizes or ()})
        index = job.index()
        for note in index.notes:
            say(note)
        return job, index

    def lack(self, need: str) -> str | None:
        if need == "data" and self.index is None:
            return "needs data that was not trained on: --data FOLDER"
        family = self.job.family_class
        if need == "autoencoder" and family.autoencoder is None:
            return f"needs an autoencoder, and family {family.name} has none"
        if need == "clips" and all(one.bucket.frames == 1 for one in self.wanted):
            return "needs clips, and only pictures are generated: --size FRAMESxHEIGHTxWIDTH"
        return None

    def measures(self) -> list[Measure]:
        if any("features" in metric.needs for metric in self.metrics.values()):
            _ = self.network
        return super().measures()

    @cached_property
    def network(self) -> FeatureNetwork:
        return load_features(self.request.features, str(self.mesh.device)).cached(self.job.memo_folder)

    @cached_property
    def real_features(self) -> Tensor:
        assert self.index is not None
        return self.network.features(middle(self.real(i)) for i in range(len(self.index.items)))

    @cached_property
    def sample_features(self) -> Tensor:
        return self.network.features(middle(frames) for frames in self.samples)

    def described(self) -> dict[str, Any]:
        return {
            **super().described(),
            "fit": list(self.request.fit or ()),
            "samples": len(self.samples) if "samples" in vars(self) else 0,
            "sizes": sorted({str(one.bucket) for one in self.wanted}),
            "steps": self.options.steps,
            "guidance": self.options.guidance,
            "seed": self.options.seed,
            "quantiles": self.job.run.objective.held_out_levels,
        }

    @cached_property
    def chosen(self) -> list[int]:
        """Which item's caption each sample has: each once in a fixed random order, then again."""
        assert self.index is not None
        items = len(self.index.items)
        number = items if self.request.samples is None else self.request.samples
        return [permuted(i % items, items, "evaluate", self.options.seed) for i in range(number)]

    @cached_property
    def wanted(self) -> list[Sampling]:
        options, index = self.options, self.index
        if index is not None:
            stated = [(index.items[i].caption, index.buckets[i]) for i in self.chosen]
        elif options.prompts:
            bucket = self.run.trained_bucket(self.request.folder, self.request.size or options.size)
            assert bucket is not None
            number = self.request.samples or len(options.prompts)
            stated = [(options.prompts[i % len(options.prompts)], bucket) for i in range(number)]
        else:
            raise UserError("--data: none is given, and the run's validation.prompts is empty; name a folder")
        return [
            Sampling.one(options, prompt, bucket, options.seed + i, self._media(i, bucket))
            for i, (prompt, bucket) in enumerate(stated)
        ]

    def _media(self, i: int, bucket: Bucket) -> dict[str, "Pixels"]:
        """What sample i is given, (T, H, W, 3) each: of the item whose caption it has."""
        if self.index is None:
            return load_media(self.options, i % len(self.options.prompts), bucket)
        dataset = captioned(self.job, self.index)
        inputs = dataset.inputs(self.chosen[i])
        media = [one for one in self.job.shape.media if not (one.clips_only and bucket.frames == 1)]
        for medium in media:
            if medium.sampling == "required" and not medium.training:
                raise UserError(
                    f"--data: a condition gives samples {medium.name}, which data do not bring; measure the "
                    "loss alone (--metrics loss), or generate with `omnitune sample --media`"
                )
        given = [one.name for one in media if one.training and one.sampling != "never"]
        return {name: to_8bit(dataset.load(name, inputs)) for name in given}

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
