"""The loss on held-out items at fixed noise levels with fixed noise: what tells over-fitting first."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ..data.loader import MicroBatches
from ..data.order import Row
from ..random import Draw, Key
from ..stages import Stage, encode

if TYPE_CHECKING:
    from ..conditions.base import Condition
    from ..families.base import Family
    from .base import Objective

QUANTILES = 8


class QuantileDraw(Draw):
    """A draw whose noise level is not random: row i has quantile `quantiles[i]` of the run's distribution."""

    def __init__(self, seed: int, keys: Sequence[Key], quantiles: Tensor, device: torch.device | str = "cpu"):
        super().__init__(seed, keys, device)
        self.quantiles = quantiles

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        if purpose != "timestep":
            return super().uniform(purpose, shape)
        return self._levels(shape)

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        if purpose != "timestep":
            return super().normal(purpose, shape)
        found: Tensor = torch.special.ndtri(self._levels(shape))
        return found

    def within(self, purpose: str, edges: Sequence[float]) -> tuple[int, Tensor]:
        cells = {sum(level >= edge for edge in edges[1:]) for level in self.quantiles.tolist()}
        assert len(cells) == 1, f"levels of {len(cells)} experts in one batch"
        return cells.pop(), self._levels(())

    def _levels(self, shape: Sequence[int]) -> Tensor:
        levels = self.quantiles.view(-1, *[1] * len(shape)).expand(-1, *shape)
        return levels.to(self.device)


@dataclass(frozen=True)
class HeldOutLoss:
    """A mean over items, each the mean over quantiles."""

    mean: float
    standard_error: float
    """Over items; nan for one item."""
    items: Sequence[float]
    """Of each item, in the order of the index: runs on the same items compare item by item."""
    quantiles: Sequence["Level"]
    """The same by noise level, averaged over items."""


@dataclass(frozen=True)
class Level:
    """The loss at one quantile of the run's timestep distribution, averaged over items."""

    u: float
    """The noise level, 0 data and 1 noise; nan for an objective without. Sizes may differ in it: the mean."""
    mean: float
    standard_error: float
    """Over items; nan for one item."""


@dataclass(frozen=True)
class Step:
    """What a training step computes its loss with; the conditions are deterministic ones."""

    family: "Family"
    objective: "Objective"
    conditions: "Sequence[Condition]"
    stages: Sequence[Stage]
    """Those that are not cached."""
    batches: MicroBatches
    device: torch.device


def held_out_loss(
    step: Step, *, quantiles: int = QUANTILES, batch_size: int = QUANTILES, seed: int = 0
) -> HeldOutLoss:
    """Average the objective's loss at the quantiles (k + 0.5) / K of the run's own timestep distribution.

    Noise is keyed by (seed, item, k), so that two calls, two checkpoints and two runs see the same; the batch
    size changes speed alone.
    """
    levels = torch.tensor([(k + 0.5) / quantiles for k in range(quantiles)])
    with evaluating(step.family.components):
        found = [
            torch.cat(
                [_rows(step, i, some, levels, seed) for some in batched(range(quantiles), batch_size)], 1
            )
            for i in range(len(step.batches.dataset.index.items))
        ]
    losses, u = torch.stack(found, 1)  # (items, quantiles) each
    items = losses.mean(1)
    by_level = [
        Level(float(u[:, k].mean()), float(losses[:, k].mean()), standard_error(losses[:, k]))
        for k in range(quantiles)
    ]
    return HeldOutLoss(float(items.mean()), standard_error(items), items.tolist(), by_level)


def standard_error(values: Tensor) -> float:
    """Of the mean; nan for one value."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _rows(step: Step, item: int, chosen: Sequence[int], levels: Tensor, seed: int) -> Tensor:
    """(2, B): the loss of one item, and its u, at some of the levels."""
    name = step.batches.dataset.index.items[item].id
    batch = step.batches.batch([Row(item, item, 0)] * len(chosen))
    draw = QuantileDraw(seed, [f"{name}#{k}" for k in chosen], levels[list(chosen)], step.device)
    with torch.no_grad():
        encoded = encode(batch, draw, step.stages, step.device)
    # An objective gives sums, linear in the rows' weights: their gradient is what each row adds.
    weight = torch.ones(len(chosen), device=step.device, requires_grad=True)
    counts = step.objective.units(step.batches.dataset.units(item))
    with torch.enable_grad():
        loss = step.objective.loss(step.family, {**encoded, "row_weight": weight}, draw, step.conditions)
        total = torch.stack([total / counts[unit] for unit, total in loss.totals.items()]).sum()
    u = _by_row(loss.metrics["u"], weight) if "u" in loss.metrics else torch.full_like(weight, math.nan)
    return torch.stack([_by_row(total, weight), u]).detach().double().cpu()


def _by_row(total: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(total, weight)[0]


@contextmanager
def evaluating(components: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, in which no parameter has a gradient."""
    modes = {module: module.training for module in components.modules()}
    trained = [p for p in components.parameters() if p.requires_grad]
    components.eval().requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


T = TypeVar("T")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(values)
    while batch := list(islice(stream, size)):
        yield batch
