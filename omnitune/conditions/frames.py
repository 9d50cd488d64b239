"""Frames of a clip that the model is given: image-to-video."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from ..batch import Batch
from ..options import option
from ..random import Draw
from .base import Condition

if TYPE_CHECKING:
    from ..families.base import Family, Noisy


@option
class FrameConditioning(Condition):
    """Give the model the first frame of a clip, the last, or both: image-to-video.

    What a model is given of them, and where, is its family's: further channels, clean frames, image tokens.
    """

    name: Literal["frame_conditioning"] = "frame_conditioning"
    frames: Literal["first", "last", "both"] = "first"
    probability: float = 1.0
    """Of each sample, that its frames are given; the others train text-to-video. 0 to 1, and 1 for a
    checkpoint that is always given frames."""
    dropout: float = 0.0
    """Of samples with frames, that an empty picture takes their place, 0 to 1: for guidance by the picture.
    Some families have it in the prompt alone."""

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be above 0 and at most 1, not {self.probability}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {self.dropout}")

    def prepare(self, family: "Family") -> None:
        family.give_frames(self.frames, optional=self.probability < 1, dropout=self.dropout > 0)

    def deterministic(self) -> Self | None:
        return replace(self, probability=1.0, dropout=0.0)

    def before(self, family: Any, noisy: "Noisy", batch: Batch, draw: Draw) -> "Noisy":
        given = draw.uniform("frames") < self.probability  # (B,)
        kept = draw.uniform("frames_dropout") >= self.dropout
        edited: Noisy = family.with_frames(noisy, batch, given, kept)
        return edited
