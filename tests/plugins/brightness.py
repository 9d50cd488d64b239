"""How bright samples are: the first thing that goes when guidance is too high."""

import numpy as np

from omnitune.evaluate import Measure, MediaEvaluator, Metric


class Brightness(Metric[MediaEvaluator]):
    """The mean level of samples, 0 to 255, beside that of the data."""

    needs = ("data", "samples")

    def measure(self) -> list[Measure]:
        one = self.evaluator
        made = np.array([frames.mean() for frames in one.samples])
        real = np.mean([one.real(i).mean() for i in range(len(one.index.items))])
        return [
            Measure(
                "brightness (levels)", float(made.mean()), float(made.std()), "deviation over samples",
                len(made), reference=float(real),
            )
        ]  # fmt: skip
