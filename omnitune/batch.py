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


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Move a tensor without waiting for the device: a step is queued ahead of what the device computes.

    So is `torch.tensor([...])` made on the CPU and moved; with `device=...` it waits.
    """
    return tensor.to(device, dtype, non_blocking=True)


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

        On the CPU, for Apple's device has no fp64. Rows behind those of `counts` are there to keep ranks
        alike, and are left out.
        """
        return averaged({unit: values[: len(counts)] for unit, values in self.rows.items()}, counts)


def averaged(rows: Mapping[str, Tensor], counts: Sequence[Mapping[str, int]]) -> Tensor:
    """Divide what rows lost, by unit, by how many each has, and add it up: (rows,) in fp64 on the CPU."""
    means = []
    for unit, values in rows.items():
        own = torch.tensor([count[unit] for count in counts], dtype=torch.float64)
        means.append(values.detach().cpu().double() / own)
    return torch.stack(means).sum(0)
