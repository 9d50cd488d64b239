"""`omnitune evaluate`: hold a run's weights against data that it was not trained on."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from ..families import resolve
from ..files import write_json
from ..objectives.held_out import QUANTILES, Step, held_out_loss
from ..progress import say
from ..run_folder import read_run
from . import rows
from .answering import AnswerEvaluation
from .asked import GENERATED, NEED_DATA, Asked
from .data import middle, reconstructed, shown
from .distances import LEAST_KID, Lpips, kid_of_features, kid_of_pairs, load_lpips, motion, psnr
from .features import Clip, FeatureNetwork, load_features
from .generated import Generated
from .subject import Subject
from .table import Measure, table
from .text_image import (
    RECALL_AT,
    ClipScorer,
    Scorer,
    Share,
    TextImageScorer,
    auc,
    mean_clip_score,
    minilm,
    recall,
)

if TYPE_CHECKING:
    from ..data.media import Pixels


@dataclass(frozen=True)
class Reconstruction:
    """An item behind the autoencoder."""

    frames: int
    psnr: float
    lpips: float | None
    picture: "Pixels"
    """Its middle frame."""


def evaluate_run(arguments: argparse.Namespace) -> None:
    """Measure, print a table, write JSON."""
    one = evaluation(Asked(**{field.name: getattr(arguments, field.name) for field in fields(Asked)}))
    measures = one.measures()
    out = arguments.out or arguments.folder / "evaluation" / f"{one.label}.json"
    write_json(out, {**one.described(), "metrics": [row.as_json() for row in measures]})
    print("\n".join(table(measures)))
    print(out)


class Evaluation(Generated):
    """Every metric of a model that generates pictures and clips."""

    known = GENERATED
    foreign = "is of answers in text, and family {family} generates pictures and clips"

    def __init__(self, asked: Asked):
        super().__init__(asked)
        self.metrics = self.measurable()

    def measures(self) -> list[Measure]:
        self._load()
        return super().measures()

    def _load(self) -> None:
        """Meet every mistake in a file or folder before anything is generated."""
        if {"kid", "text_image"}.intersection(self.metrics):
            _ = self.network
        if "text_image" in self.metrics:
            _ = self.scorer
        if "psnr" in self.metrics:
            _ = self.lpips

    def lack(self, name: str) -> str | None:
        if name in NEED_DATA and self.index is None:
            return "needs data that was not trained on: --data FOLDER"
        family = self.job.family_class
        if name == "psnr" and family.autoencoder is None:
            return f"needs an autoencoder, and family {family.name} has none"
        if name == "kid" and self.index is not None:
            items, samples = len(self.index.items), len(self.wanted)
            if min(items, samples) < LEAST_KID:
                return (
                    f"needs {LEAST_KID} items and samples, --data has {items} and --samples makes {samples}"
                )
        if name == "text_image":
            if not self.asked.fit and not self.asked.has_clip:
                return (
                    "needs captioned pictures to fit the scorer on: --fit FOLDER (or --features clip:FOLDER)"
                )
            if self.num_captions < 2:
                return "needs two captions that differ: name more in --data"
        if name == "motion" and all(one.bucket.frames == 1 for one in self.wanted):
            return "needs clips, and only pictures are generated: --size FRAMESxHEIGHTxWIDTH"
        return None

    @cached_property
    def network(self) -> FeatureNetwork:
        return load_features(self.asked.features, str(self.mesh.device)).cached(self.job.memo_folder)

    @cached_property
    def real_features(self) -> Tensor:
        assert self.index is not None
        return self.network.features(middle(self.real(i)) for i in range(len(self.index.items)))

    @cached_property
    def sample_features(self) -> Tensor:
        return self.network.features(middle(frames) for frames in self.samples)

    # Metrics

    def loss(self) -> list[Measure]:
        assert self.index is not None
        cache = self.job.open_cache()
        filled = self.job.fill_cache(self.index, cache, self.mesh)
        if filled.encoded:
            say(str(filled))
        stages = self.job.live_stages(self.family)
        batches = self.job.batches(self.index, cache, self.mesh)
        run = self.job.run
        step = Step(self.family, run.objective, run.conditions, stages, batches, self.mesh.device)
        size = run.parallel.micro_batch_size or run.data.batch_size
        together = 1 if getattr(self.family, "experts", None) else min(size, QUANTILES)
        return rows.of_loss(held_out_loss(step, batch_size=together))

    @cached_property
    def lpips(self) -> Lpips | None:
        return load_lpips(self.asked.lpips, str(self.mesh.device)) if self.asked.lpips else None

    @cached_property
    def reconstructions(self) -> list[Reconstruction]:
        assert self.index is not None
        name = self.family.autoencoder
        loaded = name in self.family.components
        self.family.fetch([name])
        found = []
        for i in range(len(self.index.items)):
            real = self.real(i)
            decoded = reconstructed(self.family, real)
            distance = self.lpips.distance(real, decoded) if self.lpips else None
            found.append(Reconstruction(len(real), psnr(real, decoded), distance, middle(decoded)))
        if not loaded:
            self.family.drop([name])
        return found

    def psnr(self) -> list[Measure]:
        found = []
        for kind, several in (("pictures", False), ("clips", True)):
            mine = [one for one in self.reconstructions if (one.frames > 1) == several]
            found += rows.over_items(f"PSNR {kind} (dB)", [one.psnr for one in mine])
            found += rows.over_items(f"LPIPS {kind}", [one.lpips for one in mine if one.lpips is not None])
        return found

    def kid(self) -> list[Measure]:
        network = self.network.name
        distance = kid_of_features(self.real_features, self.sample_features)
        found = [rows.of_distance(f"KID-{network}", distance, network)]
        if "psnr" in self.metrics:
            found += self._kid_of_reconstructions(f"KID-{network} of reconstructions")
        return found

    def _kid_of_reconstructions(self, name: str) -> list[Measure]:
        if len(self.real_features) < 2 * LEAST_KID:
            say(
                f"{name}: left out, it needs two halves of {LEAST_KID} items and --data has "
                f"{len(self.real_features)}"
            )
            return []
        decoded = self.network.features(one.picture for one in self.reconstructions)
        return [rows.of_distance(name, kid_of_pairs(self.real_features, decoded), self.network.name)]

    @cached_property
    def scorer(self) -> Scorer:
        if isinstance(self.network, Clip):
            return ClipScorer(self.network)
        job, index = self.read(self.asked.fit, "--fit", pictures=True)
        pictures = (middle(shown(job, index, i)) for i in range(len(index.items)))
        captions = [item.caption for item in index.items]
        evaluated = [one.prompt for one in self.wanted]
        scorer = TextImageScorer.fit(pictures, captions, self.network, minilm(), evaluated)
        say(
            f"text-image scorer: fitted on {scorer.num_fitted} pictures (alpha {scorer.alpha:.3g}), "
            f"{scorer.num_dropped} left out whose captions are evaluated"
        )
        return scorer

    def text_image(self) -> list[Measure]:
        scorer = self.scorer
        captions = [one.prompt for one in self.wanted]
        scores = scorer.scores(self.sample_features, captions)
        real = None
        if self.index is not None:
            real = scorer.scores(self.real_features[self.chosen], captions)
        shares = [self._share("AUC", auc, scores, real, chance=0.5)]
        if self.num_captions > RECALL_AT:
            chance = RECALL_AT / self.num_captions
            shares.append(self._share(f"recall@{RECALL_AT}", recall, scores, real, chance))
        else:
            say(
                f"recall@{RECALL_AT}: left out, it needs more than {RECALL_AT} captions that differ and "
                f"there are {self.num_captions}"
            )
        if isinstance(scorer, ClipScorer):
            shares.append(self._share("CLIPScore", mean_clip_score, scores, real))
        return shares

    def _share(
        self,
        name: str,
        metric: Callable[[Tensor, Sequence[str]], Share],
        scores: Tensor,
        real: Tensor | None,
        chance: float | None = None,
    ) -> Measure:
        captions = [one.prompt for one in self.wanted]
        reference = None if real is None else metric(real, captions)
        label = self.scorer.name
        return rows.of_share(f"{name}-{label}", metric(scores, captions), reference, chance, label)

    def motion(self) -> list[Measure]:
        made = motion(frames for frames in self.samples if len(frames) > 1)
        return rows.of_motion(made, None if self.index is None else motion(self.real_clips()))


KINDS: Mapping[str, Callable[[Asked], Subject]] = {"captions": Evaluation, "conversations": AnswerEvaluation}
"""By what a family is trained on."""


def evaluation(asked: Asked) -> Subject:
    """What measures a run, by what its model gives."""
    run = read_run(asked.folder)
    return KINDS[resolve(run.model.family).trained_on](asked)
