"""Extra inputs to a model, each written once for all families."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from ..batch import Batch, Streams
from ..data.dataset import Inputs
from ..random import Draw
from ..sampling import Medium

if TYPE_CHECKING:
    from ..families.base import Denoiser, Family, Noisy
    from ..sampling import Sampling
    from ..stages import Stage

__all__ = ["Condition", "Medium"]


class Condition:
    """Places where a condition acts; each does nothing unless overridden.

    Its stages are cached as all others are: where they use nothing that trains, need what is cached and draw
    nothing.
    """

    name: str

    def media(self, family: "Family") -> Sequence[Medium]:
        """What samples bring for it; asked after `prepare`."""
        return ()

    def prepare(self, family: "Family") -> None:
        """Change one copy of the model before rules are applied, by `widen`, `add_component`, `change`.

        Raises UserError for weights that cannot take the condition.
        """

    def stages(self, family: "Family") -> "list[Stage]":
        """Stages that run after the family's own; asked after `prepare`."""
        return []

    def inputs(self, inputs: Inputs, draw: Draw) -> Inputs:
        """Edit one sample before its stages run or its cache entries are looked up; `draw` has one key."""
        return inputs

    def variants(self, inputs: Inputs) -> list[Inputs]:
        """Every result that `inputs` can have for a sample, so that the cache holds them all."""
        return [inputs]

    def deterministic(self) -> Self | None:
        """Itself with nothing random in it, as evaluation needs it; None where nothing of it is left."""
        return self

    def before(self, family: "Denoiser", noisy: "Noisy", batch: Batch, draw: Draw) -> "Noisy":
        """Edit levels, masks, weights and extra inputs before noise is mixed in.

        A stream that is added to `x0` and `noise` is noised as the others are, and its loss is added.
        """
        return noisy

    def around(
        self, predict: Callable[[], Streams], family: "Denoiser", noisy: "Noisy", batch: Batch, draw: Draw
    ) -> Streams:
        """Call the prediction, or something around it; `noisy` has x and target now."""
        return predict()

    def sampling(self, family: "Denoiser", request: "Sampling") -> "Sampling":
        """Add to a sample that is generated what its `media` mean: keywords, a pipeline, a wrapper."""
        return request

    def exports(self, family: "Family") -> Mapping[str, Any]:
        """Plain values for the metadata of exported weights: what their user has to know."""
        return {}
