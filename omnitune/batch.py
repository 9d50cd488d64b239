"""What a training step passes from hand to hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .lazily import torch

if TYPE_CHECKING:
    from torch import Tensor


Batch = dict[str, Any]
"""Collated rows: tensors lead with the batch axis; a ragged field is a list with one entry a row."""


Streams = dict[str, "Tensor"]
"""What a denoiser reads and predicts, by name: (B, C, [T,] H, W) each."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not averaged yet, so that ranks and micro-batches of unequal size weigh correctly."""

    totals: Mapping[str, Tensor]
    """Scalar sums by unit (`samples`, `tokens`); the trainer divides each by the global count of its unit."""
    rows: Mapping[str, Tensor]
    """The same for each row, (B,), before `row_weight`: what held-out losses and ledgers are made of."""
    level: Tensor | None = None
    """The noise level of each row, (B,); None for an objective without."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalar sums over rows, averaged over the global batch for the log."""

    def row_losses(self, counts: Sequence[Mapping[str, int]]) -> Tensor:
        """Average each row over its own units, given how many it has of each: (rows of `counts`,) in fp64.

        Rows behind those are there to keep ranks alike, and are left out.
        """
        means = []
        for unit, values in self.rows.items():
            own = torch.tensor([count[unit] for count in counts], dtype=torch.float64, device=values.device)
            means.append(values[: len(counts)].detach().double() / own)
        return torch.stack(means).sum(0)
