"""How clips (T, H, W, 3) in uint8 move."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .evaluator import Metric
from .media import MediaEvaluator
from .results import Measure

if TYPE_CHECKING:
    from ..data.media import Pixels

STATIC = 0.5
"""Levels of 0..255: clips whose frames differ less on average stand still; compression alone stays below."""


class FrameMotion(Metric[MediaEvaluator]):
    """Of the clips that are generated, and of the data beside them."""

    needs = ("clips",)

    def measure(self) -> list[Measure]:
        one, real = self.evaluator, None
        made = motion(frames for frames in one.samples if len(frames) > 1)
        if one.index is not None:
            sizes = enumerate(one.index.buckets)
            real = motion(one.real(i) for i, bucket in sizes if bucket.frames > 1)

        def row(name: str, value: str, spread: float | None = None) -> Measure:
            over = "" if spread is None else "deviation over clips"
            reference = None if real is None else getattr(real, value)
            return Measure(name, getattr(made, value), spread, over, made.num_clips, reference=reference)

        return [
            row("motion (levels)", "mean", made.std),
            row("flicker (levels)", "flicker"),
            row("static clips", "static"),
        ]


@dataclass(frozen=True)
class Motion:
    """How frames of clips differ from the next, in levels of 0..255."""

    mean: float
    """Mean absolute difference of adjacent frames, averaged over clips."""
    std: float
    """Over clips, of that difference."""
    flicker: float
    """Standard deviation of that difference over time, averaged over clips: 0 is steady motion."""
    static: float
    """Share of clips that stand still."""
    num_clips: int


def motion(clips: "Iterable[Pixels]") -> Motion:
    """Frame-difference statistics of clips of two frames or more; compare clips of one rate and size only."""
    steps = [_steps(clip) for clip in clips]
    if not steps:
        raise UserError("motion: there is no clip to measure")
    means = np.array([step.mean() for step in steps])
    flicker = np.mean([step.std() for step in steps])
    return Motion(
        float(means.mean()), float(means.std()), float(flicker), float((means < STATIC).mean()), len(steps)
    )


def _steps(clip: "Pixels") -> Any:
    """(T - 1,): the mean absolute difference of each frame to the next."""
    if len(clip) < 2:
        raise UserError("motion: a clip has one frame; pictures do not move")
    return np.abs(np.diff(clip.astype(np.float32), axis=0)).mean((1, 2, 3))
