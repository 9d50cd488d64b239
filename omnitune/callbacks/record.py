"""What steps measure: kept on the device, read in bunches, given to callbacks in order."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch, LossSum, averaged, on_device
from ..data.loader import PADDING, MicroBatches
from ..errors import UserError, shared
from ..objectives.base import Objective
from ..parallel.device import Span
from .base import Record, Rows

HOST_READ_SECONDS = 1.0
"""Device scalars are read in bunches this far apart, so that steps do not wait for the host."""


@dataclass(frozen=True)
class Measured:
    """A step's record whose numbers are on the device still: `values` has its loss, grad_norm and means.

    The device comes to the end of `span` before these, so who has waited for them may read that.
    """

    record: Record
    values: Tensor
    span: Span
    size: int
    """Samples of the global batch."""
    rows: "RowTable | None" = None
    """Of the whole global batch, summed over ranks."""

    def read(self) -> Record:
        """Wait for the device."""
        loss, grad_norm, *means = self.values.tolist()
        named = MappingProxyType(dict(zip(self.record.means, means, strict=True)))
        rows = None if self.rows is None else self.rows.read()
        seconds = self.span.seconds()
        speed = self.size / max(seconds, 1e-9)
        return replace(
            self.record, loss=loss, grad_norm=grad_norm, means=named, rows=rows, seconds=seconds,
            samples_per_second=speed,
        )  # fmt: skip


class Recorder:
    """Holds what steps measured until it is read.

    Every rank reads, for loss and gradient norm are equal on all of them: each finds by itself that training
    diverged, and no rank waits for another.
    """

    def __init__(self, give: Callable[[Record], None]):
        self.give = give
        self.pending: list[Measured] = []
        self.last_read = 0.0
        self.diverged: Record | None = None

    def add(self, measured: Measured, last: bool) -> None:
        self.pending.append(measured)
        if last or time.monotonic() - self.last_read > HOST_READ_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.last_read = time.monotonic()
        pending, self.pending = self.pending, []
        for measured in pending:
            record = measured.read()
            if self.diverged is None and not (isfinite(record.loss) and isfinite(record.grad_norm)):
                self.diverged = record
            self.give(record)

    def check(self, saved_step: int) -> None:
        """Raise UserError on all ranks if a step diverged, whose weights must not be saved."""
        self.flush()
        if (record := self.diverged) is None:
            return
        kept = f"the checkpoint of step {saved_step} is intact" if saved_step else "none is saved"
        raise shared(
            UserError(
                f"optimizer.lr: training diverged: step {record.step} has loss {record.loss:g} and gradient "
                f"norm {record.grad_norm:g}; lower optimizer.lr or raise schedule.warmup, in another run "
                f"with name= ({kept})"
            )
        )


class RowTable:
    """Collects what each sample of a global batch lost, whichever rank and micro-batch it is in."""

    def __init__(self, batches: MicroBatches, step: int, objective: Objective, device: torch.device):
        rows, dataset = batches.order.batch(step), batches.dataset
        self.first = rows[0].position
        self.ids = [dataset.index.items[row.index].id for row in rows]
        self.counts = [objective.units(dataset.units(row.index)) for row in rows]
        self.units = list(self.counts[0])
        # Sums in fp32, as they come: they are averaged where they are read. The levels stand behind them.
        self.table = torch.zeros(len(self.units) + 1, len(rows), device=device)
        self.has_levels = False

    def add(self, batch: Batch, loss: LossSum) -> None:
        """Take up a micro-batch, as the loader gave it; rows that fill up stand behind those that count."""
        pairs = zip(batch["position"], batch["row_weight"].tolist(), strict=True)
        places = [position - self.first for position, weight in pairs if weight and position != PADDING]
        if not places:
            return
        at = on_device(torch.tensor(places), self.table.device)
        for row, unit in enumerate(self.units):
            self.table[row, at] = loss.rows[unit][: len(places)].detach().float()
        if loss.level is not None:
            self.has_levels = True
            self.table[-1, at] = loss.level[: len(places)].detach().float()

    def read(self) -> Rows:
        """Wait for the device."""
        *sums, levels = self.table.cpu()
        losses = averaged(dict(zip(self.units, sums, strict=True)), self.counts)
        return Rows(self.ids, losses.tolist(), levels.tolist() if self.has_levels else None)


def merged_draws(ranks: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Order the sample ids and draw hashes of a step as the global batch, whoever drew them."""
    rows: dict[int, dict[str, str]] = {}
    for micro in (m for rank in ranks for m in rank):
        for i, (position, name) in enumerate(zip(micro["position"], micro["id"], strict=True)):
            if position == PADDING:
                continue
            rows[position] = {"id": name, **{purpose: h[i] for purpose, h in micro["hashes"].items()}}
    ordered = [rows[position] for position in sorted(rows)]
    return {key: [row[key] for row in ordered] for key in ordered[0]}
