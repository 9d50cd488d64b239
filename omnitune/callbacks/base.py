"""The hooks of a callback."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..trainer import Trainer

Metrics = dict[str, Any]
"""What a step measured; tensors are still on the device."""


class Callback:
    """Does nothing unless overridden. Hooks run on every rank, in the order of the trainer's list."""

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step, after a checkpoint was restored."""

    def on_step(self, trainer: "Trainer", metrics: Metrics) -> None:
        """After each step; `trainer.step` counts the steps that are done."""

    def on_save(self, trainer: "Trainer") -> None:
        """Before a checkpoint is written."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last step and its checkpoint; not when a signal stops the run."""

    def on_close(self, trainer: "Trainer") -> None:
        """At the very end, also when the run is stopped or fails; ranks may be lost: no collectives."""

    def served(self, weights: "dict[str, Tensor]") -> AbstractContextManager[None]:
        """For a while, put the weights that users get (an average, say) in place of those that train."""
        return nullcontext()

    def tensors(self) -> "dict[str, Tensor]":
        """What the checkpoint keeps; read back in place."""
        return {}
