"""Frames of a clip that the model is given: image-to-video."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from ..batch import Batch
from ..errors import UserError
from ..families.base import Denoiser
from ..options import check_ranges, option
from ..random import Draw
from .base import Condition, Medium

if TYPE_CHECKING:
    from ..families.base import Family, Noisy
    from ..sampling import Sampling
    from ..stages import Stage

KEYWORDS = {"first_frame": "image", "last_frame": "last_image"}
"""Medium -> the keyword of the pipelines' call."""


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
    """Probability of replacing the given frames by an empty picture, 0 to 1: for guidance by the picture.
    Some families have it in the prompt alone."""

    def __post_init__(self) -> None:
        check_ranges(self, probability="(0, 1]", dropout="[0, 1)")

    @property
    def names(self) -> Sequence[str]:
        """The media that it gives."""
        return ("first_frame", "last_frame") if self.frames == "both" else (f"{self.frames}_frame",)

    def media(self, family: "Family") -> Sequence[Medium]:
        assert isinstance(family, Denoiser)
        need: Literal["required", "optional"] = "required" if family.frames_required else "optional"
        return [Medium(name, sampling=need, clips_only=True) for name in self.names]

    def prepare(self, family: "Family") -> None:
        takes, path = family.takes if isinstance(family, Denoiser) else (), family.request.path
        if not isinstance(family, Denoiser) or self.frames not in takes:
            able = f"it takes {', '.join(takes)}" if takes else "it is given no frames"
            raise UserError(f"conditions: frames: {self.frames!r} is not for {path}, {able}")
        if self.probability < 1 and family.frames_required:
            out = "leave probability at 1, and use dropout for an empty picture in their place"
            raise UserError(f"conditions: {path} is always given frames; {out}")
        if self.dropout > 0 and not family.frames_required:
            out = "use probability, the others train text-to-video"
            raise UserError(f"conditions: {path} knows no empty picture; {out}")

    def stages(self, family: "Family") -> "list[Stage]":
        assert isinstance(family, Denoiser)
        return family.frame_stages(self.frames, dropout=self.dropout > 0)

    def deterministic(self) -> Self | None:
        return replace(self, probability=1.0, dropout=0.0)

    def before(self, family: Denoiser, noisy: "Noisy", batch: Batch, draw: Draw) -> "Noisy":
        given = draw.uniform("frames") < self.probability  # (B,)
        kept = draw.uniform("frames_dropout") >= self.dropout
        return family.with_frames(noisy, batch, self.frames, given, kept)

    def sampling(self, family: Denoiser, request: "Sampling") -> "Sampling":
        from PIL import Image

        given = [name for name in self.names if name in request.media]
        if not given:  # text-to-video
            return request
        pictures = {KEYWORDS[name]: Image.fromarray(request.media[name][0]) for name in given}
        keywords = {**request.keywords, **pictures}
        return replace(request, pipeline=family.image_pipeline_class, keywords=keywords)
