"""Extra inputs to a denoiser, written once for all families."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from .random import Draw
from .types import Batch, Streams, option

if TYPE_CHECKING:
    from .families.base import Family, Noisy

Inputs = dict[str, Any]
"""What a sample brings before any stage runs: `caption`, and what else its family needs."""


class Condition:
    """Places where a condition acts; each does nothing unless overridden."""

    def prepare(self, family: "Family") -> None:
        """Change the model once, before rules are applied."""

    def inputs(self, inputs: Inputs, draw: Draw) -> Inputs:
        """Edit one sample before its stages run or its cache entries are looked up; `draw` has one key."""
        return inputs

    def variants(self, inputs: Inputs) -> list[Inputs]:
        """Every result that `inputs` can have for a sample, so that the cache holds them all."""
        return [inputs]

    def deterministic(self) -> Self | None:
        """Itself with nothing random in it, as evaluation needs it; None where nothing of it is left."""
        return self

    def before(self, family: Any, noisy: "Noisy", batch: Batch, draw: Draw) -> "Noisy":
        """Edit levels, masks, weights and extra inputs before noise is mixed in."""
        return noisy

    def around(
        self, predict: Callable[[], Streams], family: "Family", noisy: "Noisy", batch: Batch, draw: Draw
    ) -> Streams:
        """Call the prediction, or something around it."""
        return predict()


@option
class CaptionDropout(Condition):
    """Replace a caption by the empty prompt, so that the model keeps an unconditional branch for guidance.

    Ho and Salimans 2022, "Classifier-free diffusion guidance", algorithm 1.
    """

    name: Literal["caption_dropout"] = "caption_dropout"
    probability: float = 0.1
    """Of each sample, each time it is seen; 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, not {self.probability}")

    def inputs(self, inputs: Inputs, draw: Draw) -> Inputs:
        return {**inputs, "caption": ""} if draw.row("caption_dropout") < self.probability else inputs

    def variants(self, inputs: Inputs) -> list[Inputs]:
        return [inputs, {**inputs, "caption": ""}]

    def deterministic(self) -> Self | None:
        return None


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
    HunyuanVideo has it in the prompt alone."""

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


def all_variants(conditions: Sequence[Condition], inputs: Inputs) -> list[Inputs]:
    """Every combination of what the conditions can make of a sample."""
    found = [inputs]
    for condition in conditions:
        found = [variant for one in found for variant in condition.variants(one)]
    return found
