"""Extra inputs to a denoiser, written once for all families."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from ..batch import Batch, Streams
from ..data.dataset import Inputs
from ..random import Draw

if TYPE_CHECKING:
    from ..families.base import Family, Noisy


class Condition:
    """Places where a condition acts; each does nothing unless overridden."""

    def prepare(self, family: "Family") -> None:
        """Change the model once, before rules are applied."""

    def inputs(self, inputs: Inputs, draw: Draw) -> Inputs:
        """Edit one sample before its stages run or its cache entries are looked up; `draw` has one key."""
        return inputs

    def variants(self, inputs: Inputs) -> list[Inputs]:
        """Every result that `inputs` can have for a sample, so that the cache holds them all."""
        return [inputs]

    def deterministic(self) -> Self | None:
        """Itself with nothing random in it, as evaluation needs it; None where nothing of it is left."""
        return self

    def before(self, family: Any, noisy: "Noisy", batch: Batch, draw: Draw) -> "Noisy":
        """Edit levels, masks, weights and extra inputs before noise is mixed in."""
        return noisy

    def around(
        self, predict: Callable[[], Streams], family: "Family", noisy: "Noisy", batch: Batch, draw: Draw
    ) -> Streams:
        """Call the prediction, or something around it."""
        return predict()
