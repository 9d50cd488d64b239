"""The loss on held-out items at fixed noise levels with fixed noise: what tells over-fitting first."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..data.loader import MicroBatches
from ..data.order import Row
from ..random import Draw, Key
from ..stages import Stage, encode

if TYPE_CHECKING:
    from ..conditions.base import Condition
    from ..families.base import Family
    from .base import Objective


class QuantileDraw(Draw):
    """A draw whose noise level is not random: row i has quantile `quantiles[i]` of the run's distribution."""

    def __init__(self, seed: int, keys: Sequence[Key], quantiles: Tensor, device: torch.device | str = "cpu"):
        super().__init__(seed, keys, device)
        self.quantiles = quantiles

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        if not is_level(purpose):
            return super().uniform(purpose, shape)
        return self._levels(shape)

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        if not is_level(purpose):
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


def is_level(purpose: str) -> bool:
    """Whether a draw is of a noise level: `timestep`, or `timestep.STREAM` of a stream with its own."""
    return purpose.partition(".")[0] == "timestep"


@dataclass(frozen=True)
class HeldOutLoss:
    """A mean over items, which weigh by how many units (samples, tokens) each has."""

    items: Sequence[float]
    """Of each item, in the order of the index: runs on the same items compare item by item."""
    units: Sequence[int]
    """How many units each item has: 1, or its learned tokens."""
    u: float = math.nan
    """The noise level, 0 data and 1 noise, where it is one; sizes may differ in it: the mean."""
    levels: Sequence["HeldOutLoss"] = ()
    """The same by noise level; one for an objective without levels, whose u is nan."""

    @property
    def mean(self) -> float:
        pairs = zip(self.items, self.units, strict=True)
        return sum(value * number for value, number in pairs) / sum(self.units)

    @property
    def standard_error(self) -> float:
        """Over items, of a ratio of two sums (Cochran 1977); nan for one item."""
        count, mean = len(self.items), self.mean
        if count < 2:
            return math.nan
        pairs = zip(self.items, self.units, strict=True)
        square = sum(((value - mean) * number) ** 2 for value, number in pairs) / (count - 1)
        return math.sqrt(square / count) / (sum(self.units) / count)


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
    step: Step, *, levels: int | None = None, batch_size: int = 8, seed: int = 0
) -> HeldOutLoss:
    """Average the objective's loss over all items, at fixed noise levels with fixed noise.

    An item is measured at the quantiles (k + 0.5) / K of the run's own timestep distribution, K being
    `levels`, the objective's own number by default. Noise is keyed by (seed, item, k), so that two calls, two
    checkpoints and two runs see the same; the batch size changes speed alone. It may be called in
    mid-training, by all ranks, each of which measures all items.
    """
    number = step.objective.held_out_levels if levels is None else levels
    quantiles = torch.tensor([(k + 0.5) / number for k in range(number)])
    samples = step.batches.dataset
    counts = [step.objective.units(samples.units(i)) for i in range(len(samples.index.items))]
    # Items differ in size, so a batch holds levels of one item; without levels, rows are padded to one size.
    # Of two experts each takes whole batches, so levels are measured one by one.
    size = 1 if number > 1 and len(step.family.cores) > 1 else batch_size
    pairs = [[(i, k) for k in range(number)] for i in range(len(counts))]
    groups = pairs if step.objective.held_out_levels > 1 else [[pair for (pair,) in pairs]]
    # `requires_grad` stays as it is: sharding reads it when it first gathers a parameter.
    with step.family.evaluating(), torch.no_grad():
        found = [
            _measure(step, some, quantiles, counts, seed) for group in groups for some in batched(group, size)
        ]
    losses, u = torch.cat(found, 1).view(2, len(counts), number)
    units = [sum(count.values()) for count in counts]
    by_level = [
        HeldOutLoss(losses[:, k].tolist(), units, float(u[:, k].mean())) for k in range(number)
    ]  # fmt: skip
    return HeldOutLoss(losses.mean(1).tolist(), units, levels=by_level)


def _measure(
    step: Step,
    chosen: Sequence[tuple[int, int]],
    quantiles: Tensor,
    counts: Sequence[Mapping[str, int]],
    seed: int,
) -> Tensor:
    """(2, B): the losses of some items at some levels, and their u."""
    items = step.batches.dataset.index.items
    batch = step.batches.batch([Row(i, i, 0) for i, _ in chosen])
    keys = [f"{items[i].id}#{k}" for i, k in chosen]
    draw = QuantileDraw(seed, keys, quantiles[[k for _, k in chosen]], step.device)
    encoded = encode(batch, draw, step.stages, step.device)
    loss = step.objective.for_evaluation().loss(step.family, encoded, draw, step.conditions)
    rows = loss.row_losses([counts[i] for i, _ in chosen])
    u = torch.full_like(rows, math.nan) if loss.level is None else loss.level[: len(chosen)].cpu().double()
    return torch.stack([rows, u])


T = TypeVar("T")


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(values)
    while batch := list(islice(stream, size)):
        yield batch
