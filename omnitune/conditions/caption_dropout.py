"""Captions dropped at random, for classifier-free guidance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from ..data.dataset import Inputs
from ..options import check_ranges, option
from ..random import Draw
from .base import Condition, Medium

if TYPE_CHECKING:
    from ..families.base import Family


@option
class CaptionDropout(Condition):
    """Replace a caption by the empty prompt, so that the model keeps an unconditional branch for guidance.

    Ho and Salimans 2022, "Classifier-free diffusion guidance", algorithm 1.
    """

    name: Literal["caption_dropout"] = "caption_dropout"
    probability: float = 0.1
    """Of each sample, each time it is seen; 0 to 1."""

    def __post_init__(self) -> None:
        check_ranges(self, probability="[0, 1]")

    def media(self, family: "Family") -> Sequence[Medium]:
        return [Medium("caption", sampling="never")]

    def inputs(self, inputs: Inputs, draw: Draw) -> Inputs:
        return {**inputs, "caption": ""} if draw.row("caption_dropout") < self.probability else inputs

    def variants(self, inputs: Inputs) -> list[Inputs]:
        return [inputs, {**inputs, "caption": ""}]

    def deterministic(self) -> Self | None:
        return None
