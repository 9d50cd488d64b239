"""End a run when its loss no longer falls, and name the samples that are hardest."""

import json
import math

from omnitune.callbacks.base import Callback, Record, State, TrainerView
from omnitune.options import check_ranges, option


@option
class EarlyStop:
    """Ends a run whose loss has not fallen below its best for a number of steps."""

    name: str
    patience: int = 100

    def __post_init__(self) -> None:
        check_ranges(self, patience="[1, inf)")

    def build(self) -> Callback:
        return _EarlyStop(self.patience)


class _EarlyStop(Callback):
    wants_rows = True

    def __init__(self, patience: int):
        self.patience = patience
        self.best, self.best_step = math.inf, 0
        self.losses: dict[str, float] = {}

    def on_start(self, trainer: TrainerView) -> None:
        self.trainer = trainer
        # A run that was ended and is started again has nothing to do.
        trainer.finish_wish |= trainer.step - self.best_step >= self.patience

    def on_record(self, record: Record) -> None:
        if record.loss < self.best:
            self.best, self.best_step = record.loss, record.step
        if record.rows:
            self.losses.update(zip(record.rows.ids, record.rows.losses, strict=True))
        self.trainer.finish_wish |= record.step - self.best_step >= self.patience

    def on_end(self, trainer: TrainerView) -> None:
        if trainer.mesh.main:
            hardest = sorted(self.losses, key=lambda name: -self.losses[name])
            (trainer.folder / "hardest.json").write_text(json.dumps(hardest))

    def state(self) -> State:
        return {"best": self.best, "best_step": self.best_step, "losses": self.losses}

    def load_state(self, state: State) -> None:
        self.best, self.best_step = state["best"], state["best_step"]
        self.losses = dict(state["losses"])
