"""Samples while training, so that one sees what is learned."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.sizes import Bucket
from ..sampling import Validation, write_samples
from .base import Callback, Samples, TrainerView

if TYPE_CHECKING:
    from ..families.base import Family


class SampleCallback(Callback):
    def __init__(self, options: Validation, family: "Family", bucket: Bucket | None, folder: Path):
        self.options, self.family, self.folder = options, family, folder
        self.requests = family.request_type.of(options, bucket)

    def due(self, step: int, last: int) -> bool:
        if not self.requests:
            return False
        return step in (0, last) or bool(self.options.every and step % self.options.every == 0)

    def on_start(self, trainer: TrainerView) -> None:
        self.start, self.last_step = trainer.step, trainer.last_step
        if trainer.step == 0 and self.due(0, trainer.last_step):
            self.write(trainer)

    def on_step(self, trainer: TrainerView) -> None:
        if self.due(trainer.step, trainer.last_step):
            self.write(trainer)

    def on_end(self, trainer: TrainerView) -> None:
        # A run that a callback ended here did not know in its last step that it was the last.
        ended_early = self.start < trainer.step < self.last_step
        if ended_early and not self.due(trainer.step, self.last_step):
            self.write(trainer)

    def write(self, trainer: TrainerView) -> None:
        """All ranks generate, for sharded weights are gathered by all; the main rank writes."""
        if not self.requests:
            return
        with trainer.averaged_weights():
            made = self.family.sample(self.requests)
        if trainer.mesh.main:
            files = write_samples(self.folder / f"step-{trainer.step:08d}", self.requests, made)
            trainer.report_samples(Samples(trainer.step, self.requests, made, files))
