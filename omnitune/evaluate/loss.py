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
        named = [("held-out loss", found)]
        named += [(f"held-out loss (u = {one.u:.3f})", one) for one in found.levels if not math.isnan(one.u)]
        return [
            Measure(name, one.mean, one.standard_error, "standard error", len(one.items))
            for name, one in named
        ]
