"""An exponential moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..lazily import torch
from ..options import check_ranges, option
from .base import Callback, TrainerView

if TYPE_CHECKING:
    from torch import Tensor


@option
class Ema:
    """Polyak averaging: samples and exported weights are the average, the raw weights are kept too."""

    decay: float = 0.999
    """Share of the average that stays in each step; lower in the first steps: (1 + n) / (10 + n)."""

    def __post_init__(self) -> None:
        check_ranges(self, decay="(0, 1)")


class EmaCallback(Callback):
    def __init__(self, options: Ema):
        self.decay = options.decay
        self.average: dict[str, Tensor] = {}

    def attach(self, weights: dict[str, Tensor]) -> None:
        """Start from the weights as they are; before a checkpoint is restored into `tensors()`."""
        self.average = {name: w.detach().clone() for name, w in weights.items()}

    def on_step(self, trainer: TrainerView) -> None:
        decay = min(self.decay, (1 + trainer.step) / (10 + trainer.step))
        for name, weight in trainer.weights().items():
            self.average[name].lerp_(weight.detach(), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        return {f"ema/{name}": value for name, value in self.average.items()}

    @contextmanager
    def averaged_weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        raw = {name: w.detach().clone() for name, w in weights.items()}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(raw[name])
