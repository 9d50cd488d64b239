"""The held-out loss as rows."""

import math

from ..objectives.held_out import held_out_loss
from .evaluator import Evaluator, Metric
from .results import Measure


class Loss(Metric[Evaluator]):
    """The mean, and a row for each noise level where the objective has such."""

    needs = ("data",)

    def measure(self) -> list[Measure]:
        run = self.evaluator.job.run
        size = run.parallel.micro_batch_size or run.data.batch_size
        found = held_out_loss(self.evaluator.step, batch_size=size)
        name, count = "held-out loss", len(found.items)
        levels = [level for level in found.levels if not math.isnan(level.u)]
        return [
            Measure(name, found.mean, found.standard_error, "standard error", count),
            *(
                Measure(f"{name} (u = {one.u:.3f})", one.mean, one.standard_error, "standard error", count)
                for one in levels
            ),
        ]
