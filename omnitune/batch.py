"""What a training step passes from hand to hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


Batch = dict[str, Any]
"""Collated rows: tensors lead with the batch axis; a ragged field is a list with one entry a row."""


Streams = dict[str, "Tensor"]
"""What a denoiser reads and predicts, by name: (B, C, [T,] H, W) each."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not averaged yet, so that ranks and micro-batches of unequal size weigh correctly."""

    totals: Mapping[str, "Tensor"]
    """Scalar sums by unit (`samples`, `tokens`); the trainer divides each by the global count of its unit."""
    metrics: Mapping[str, "Tensor"] = field(default_factory=dict)
    """Scalar sums over rows, averaged over the global batch for the log."""
