"""Next-token prediction: what vision-language models learn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from ..batch import Batch, LossSum
from ..conditions.base import Condition
from ..errors import UserError
from ..families.base import Responder
from ..options import NOT_LEARNED, check_ranges, option
from ..random import Draw

if TYPE_CHECKING:
    from ..families.base import Family


@option
class CausalLM:
    """Cross-entropy of the tokens that are learned, averaged over all of them in the global batch."""

    held_out_levels: ClassVar[int] = 1

    name: Literal["causal_lm"] = "causal_lm"
    label_smoothing: float = 0.0
    """Share of the target that is spread over the whole vocabulary (Szegedy et al. 2016), in [0, 1)."""
    chunk: Annotated[int, NOT_LEARNED] = 1024
    """Tokens whose logits exist at once; smaller takes less memory and learns the same."""

    def __post_init__(self) -> None:
        check_ranges(self, label_smoothing="[0, 1)", chunk="[1, inf)")

    def prepare(self, family: "Family") -> None:
        if not isinstance(family, Responder):
            raise UserError(
                f"objective.name: causal_lm trains a model that answers in text, and {family.name} does not"
            )

    def units(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        return {"tokens": inputs["tokens"]}

    def loss(self, family: Responder, batch: Batch, draw: Draw, conditions: Sequence[Condition]) -> LossSum:
        losses = family.token_losses(batch, chunk=self.chunk, label_smoothing=self.label_smoothing)
        return LossSum({"tokens": (losses * batch["row_weight"]).sum()}, {"tokens": losses})

    def for_evaluation(self) -> Self:
        """Without smoothing, so that runs with and without compare."""
        return replace(self, label_smoothing=0.0)
