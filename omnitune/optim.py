"""Optimizers by name, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol

from .errors import UserError
from .lazily import torch
from .options import NOT_LEARNED, ByName, check_ranges, option


class OptimizerOptions(Protocol):
    """What `optimizer` may be: an option with a field `name`, and these."""

    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float | None: ...
    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimizer of parameter groups, which state their own `lr` and `weight_decay`."""


@option
class AdamOptions:
    """What Adam and AdamW have in common."""

    name: Literal["adam", "adamw"]
    lr: float = 1e-4
    """Learning rate of rules that state none."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float
    """Of rules that state none."""
    max_grad_norm: float | None = 1.0
    """The gradient is scaled down to this norm; null: never."""

    def __post_init__(self) -> None:
        check_ranges(self, lr="[0, inf)", eps="[0, inf)", weight_decay="[0, inf)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), not {list(self.betas)}")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be above 0, or null for none, not {self.max_grad_norm}")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@option
class AdamW(AdamOptions):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017), fused."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = 0.01


@option
class Adam(AdamOptions):
    """Adam (Kingma and Ba 2014), fused; its weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    weight_decay: float = 0.0


def build_optimizer(options: OptimizerOptions, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make a run's optimizer. Raises UserError for one of another package that does not keep its groups."""
    keys = [sorted(group) for group in groups]
    found = options.build(groups)
    kept = isinstance(found, torch.optim.Optimizer) and len(found.param_groups) == len(keys)
    if not kept or any(set(own) - set(group) for own, group in zip(keys, found.param_groups, strict=True)):
        raise UserError(
            f"optimizer: build() of {type(options).__name__} gives {type(found).__name__}, not a "
            "torch.optim.Optimizer of the groups that it was given, each with all its keys; hand them on as "
            "they are"
        )
    return found


AnyOptimizer = Annotated[AdamW | Adam, ByName("adamw", OptimizerOptions)]
"""What `optimizer` may be; a class of another package is one by `name: package.module:Class`."""


Way = Literal["restart", "continue"]
"""How a rate that decays goes on when `steps` changes."""


@option
class Schedule:
    """How long a run is and how its learning rates move."""

    steps: Annotated[int, NOT_LEARNED] = 1000
    """Optimizer steps; a larger value extends a finished run."""
    warmup: int | float = 0
    """Steps in which the rate rises linearly from 1 / warmup of its value; below 1, a share of all steps."""
    decay: Literal["constant", "linear", "cosine", "polynomial", "piecewise"] = "constant"
    """After the warm-up, down to `floor` at the last step."""
    floor: float = 0.0
    """Share of the rate that is left at the end, 0 to 1."""
    power: float = 2.0
    """Of `polynomial`."""
    pieces: tuple[tuple[int, float], ...] = ()
    """Of `piecewise`: [step, factor] pairs, the factor holding from that step on."""
    extend: Annotated[Way | None, NOT_LEARNED] = None
    """What a decaying rate does in the steps that are left when `steps` changes in a run that has begun:
    `restart` is a new warm-up and decay, `continue` decays on from the rate reached; absent: refused."""
    extended: Annotated[tuple[tuple[int, int, Way], ...], NOT_LEARNED] = ()
    """What a run folder's own run.yaml says of each change of `steps`: those before, the step reached, and
    how the rate went on."""

    def __post_init__(self) -> None:
        check_ranges(self, steps="[1, inf)", floor="[0, 1]", power="(0, inf)")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must be at least 0 and below steps ({self.steps}), not {self.warmup}")
        if self.warmup > 1 and self.warmup % 1:
            raise ValueError(f"warmup must be whole steps, or a share below 1, not {self.warmup}")
        if (self.decay == "piecewise") != bool(self.pieces):
            raise ValueError("pieces and decay: piecewise go together; give both or neither")
        if [s for s, _ in self.pieces] != sorted({s for s, _ in self.pieces}):
            raise ValueError(f"pieces must rise in step, not {[s for s, _ in self.pieces]}")
        reached = [0, *(at for _, at, _ in self.extended)]
        if reached != sorted(set(reached)) or any(at > steps for steps, at, _ in self.extended):
            raise ValueError(f"extended must rise in step, each within its steps, not {self.extended}")

    def warmup_steps(self, steps: int) -> int:
        """The warm-up of a curve of so many steps."""
        return round(self.warmup * steps if self.warmup < 1 else self.warmup)

    def factor(self, step: int) -> float:
        """What every rate is multiplied with in step (from 0)."""
        planned = [*(steps for steps, _, _ in self.extended), self.steps]
        starts = [0, *(at for _, at, _ in self.extended)]
        number = max(i for i, start in enumerate(starts) if start <= step)
        start, end = starts[number], planned[number]
        if number and self.extended[number - 1][2] == "continue":
            before = replace(self, steps=planned[number - 1], extended=self.extended[: number - 1])
            reached = before.factor(start - 1)
            return self._decayed(reached, (step + 1 - start) / (end - start))
        return self._curve(step - start, end - start)

    def _curve(self, step: int, steps: int) -> float:
        """The factor in a step of a curve of so many."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.decay == "piecewise":
            return next((f for s, f in reversed(self.pieces) if step >= s), 1.0)
        return self._decayed(1.0, (step - warmup) / max(1, steps - 1 - warmup))

    def _decayed(self, top: float, done: float) -> float:
        """What is left of a factor when a share of its decay to `floor` is done."""
        done = min(1.0, done)
        shape: float = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "polynomial": (1 - done) ** self.power,
        }[self.decay]
        return top if self.decay == "constant" else self.floor + (top - self.floor) * shape

    def after(self, before: "Schedule", reached: int) -> "Schedule":
        """This schedule in a run that trained `reached` steps by another: what was trained keeps its curve.

        Raises UserError where the rate would jump and `extend` does not say how it goes on.
        """
        planned, extended = before.steps, before.extended
        if extended and extended[-1][1] == reached and self.extend not in (None, extended[-1][2]):
            (planned, _, _), extended = extended[-1], extended[:-1]  # nothing was trained since
        kept = replace(self, extended=extended)
        if self.steps == planned:
            return kept
        if reached == 0:
            return self
        if self.steps <= reached:  # nothing is trained, so what was stays true
            return before
        old = replace(before, steps=planned, extended=extended)
        if kept.factor(reached - 1) == old.factor(reached - 1):  # constant, or still in the warm-up
            return kept
        told = (
            f"schedule.steps: {self.steps}, but the rates decayed over {planned} steps up to step {reached}"
        )
        if self.extend is None:
            raise UserError(
                f"{told}, and would jump from {old.factor(reached - 1):.3g} to {kept.factor(reached):.3g} of "
                "their value; state schedule.extend: restart (a new warm-up and decay over the "
                f"{self.steps - reached} steps that are left) or continue (decay on from the rate reached)"
            )
        if self.extend == "restart" and self.warmup >= self.steps - reached:
            raise UserError(
                f"schedule.extend: restart warms up for {self.warmup} steps again, and "
                f"{self.steps - reached} are left; take a larger schedule.steps, or continue"
            )
        if self.extend == "continue" and old.factor(reached - 1) == 0:
            raise UserError(f"{told}, to 0, where continue would stay; state schedule.extend: restart")
        return replace(self, extended=(*extended, (planned, reached, self.extend)))
