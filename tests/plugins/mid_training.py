"""Measure the trained items themselves at fixed noise, in mid-training."""

import json

from omnitune.callbacks.base import Callback, TrainerView
from omnitune.objectives.held_out import Step, held_out_loss
from omnitune.options import option


@option
class MidTraining:
    """Writes the loss at two noise levels every few steps, of the averaged weights where there are any."""

    name: str
    every: int = 1

    def build(self) -> Callback:
        return _MidTraining(self.every)


class _MidTraining(Callback):
    def __init__(self, every: int):
        self.every = every

    def on_start(self, trainer: TrainerView) -> None:
        self.measure(trainer)

    def on_step(self, trainer: TrainerView) -> None:
        if trainer.step % self.every == 0:
            self.measure(trainer)

    def measure(self, trainer: TrainerView) -> None:
        """All ranks measure, for the weights may be spread over them; the main rank writes."""
        step = Step(
            trainer.family, trainer.objective, trainer.conditions, trainer.stages, trainer.batches,
            trainer.mesh.device,
        )  # fmt: skip
        with trainer.averaged_weights():
            found = held_out_loss(step, levels=2)
        if trainer.mesh.main:
            line = {"step": trainer.step, "loss": found.mean}
            with (trainer.folder / "held_out.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
