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

    def due(self, step: int) -> bool:
        return step in (0, self.last_step) or bool(self.options.every and step % self.options.every == 0)

    def on_start(self, trainer: TrainerView) -> None:
        self.start, self.last_step = trainer.step, trainer.last_step
        if trainer.step == 0:
            self.write(trainer)

    def on_step(self, trainer: TrainerView) -> None:
        if self.due(trainer.step):
            self.write(trainer)

    def on_end(self, trainer: TrainerView) -> None:
        # A run that a callback ended here did not know in its last step that it was the last.
        if self.start < trainer.step < self.last_step and not self.due(trainer.step):
            self.write(trainer)

    def write(self, trainer: TrainerView) -> None:
        """All ranks generate, for sharded weights are gathered by all; the main rank writes."""
        if not self.requests:
            return
        with trainer.averaged_weights():
            made = self.family.sample(self.requests)

        def write() -> None:
            files = write_samples(self.folder / f"step-{trainer.step:08d}", self.requests, made)
            trainer.report_samples(Samples(trainer.step, self.requests, made, files))

        trainer.mesh.on_main(write)
