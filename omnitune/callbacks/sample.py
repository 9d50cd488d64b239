"""Samples while training, so that one sees what is learned."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.sizes import Bucket
from ..sampling import Validation, write_samples
from .base import Callback, Metrics

if TYPE_CHECKING:
    from ..families.base import Family
    from ..trainer import Trainer


class SampleCallback(Callback):
    def __init__(self, options: Validation, family: "Family", bucket: Bucket | None, folder: Path):
        self.options, self.family, self.folder = options, family, folder
        self.requests = family.request_type.of(options, bucket)

    def due(self, step: int, last: int) -> bool:
        if not self.requests:
            return False
        return step in (0, last) or bool(self.options.every and step % self.options.every == 0)

    def on_start(self, trainer: "Trainer") -> None:
        if trainer.step == 0 and self.due(0, trainer.last_step):
            self.write(trainer)

    def on_step(self, trainer: "Trainer", metrics: Metrics) -> None:
        if self.due(trainer.step, trainer.last_step):
            self.write(trainer)

    def write(self, trainer: "Trainer") -> None:
        """All ranks generate, for sharded weights are gathered by all; the main rank writes."""
        with trainer.served():
            results = self.family.sample(self.requests)
        if trainer.mesh.main:
            write_samples(self.folder / f"step-{trainer.step:08d}", self.requests, results)
