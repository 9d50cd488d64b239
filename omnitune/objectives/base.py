"""What the trainer asks of an objective."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..batch import Batch, LossSum
from ..conditions.base import Condition
from ..random import Draw

if TYPE_CHECKING:
    from ..families.base import Family


class Objective(Protocol):
    """What is learned: an option with a field `name` and these methods."""

    held_out_levels: ClassVar[int]
    """Noise levels at which a held-out item is measured; 1 for an objective without."""

    def prepare(self, family: "Family") -> None:
        """Check that this objective can train this family, before anything is loaded."""

    def units(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """What one sample adds to each denominator, known from the index alone."""

    def loss(self, family: Any, batch: Batch, draw: Draw, conditions: Sequence[Condition]) -> LossSum:
        """Sums over the rows of a micro-batch, weighted by `batch["row_weight"]` (0 for filling rows)."""

    def for_evaluation(self) -> "Objective":
        """The loss that held-out items are measured by, without what makes two runs incomparable."""
