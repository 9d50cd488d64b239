"""The training loop: one for every family, objective, condition and mesh."""

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .batch import Batch
from .callbacks.base import Callback, Metrics
from .conditions.base import Condition
from .data.loader import PADDING, MicroBatches, read_steps
from .errors import Stopped, UserError, shared
from .export.weights import CARRIED
from .families.base import Family
from .objectives.base import Objective
from .optim import Schedule
from .parallel.mesh import Mesh
from .parallel.state import load_optimizer, load_tensors, optimizer_tensors
from .random import Draw, seed_of
from .stages import Stage, encode


class Trainer:
    """Steps a placed family; everything it holds is a value that it knows by its protocol only."""

    def __init__(
        self,
        *,
        family: Family,
        objective: Objective,
        conditions: Sequence[Condition],
        stages: Sequence[Stage],
        batches: MicroBatches,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None,
        schedule: Schedule,
        mesh: Mesh,
        folder: Path,
        seed: int,
        checkpoints: checkpoint.Checkpoints,
        callbacks: Sequence[Callback] = (),
        state: dict[str, Any] | None = None,
        record_draws: bool = False,
        num_workers: int = 0,
        start: int = 0,
        total: int | None = None,
        carried: Collection[str] = (),
    ):
        self.family, self.objective, self.conditions, self.stages = family, objective, conditions, stages
        self.batches, self.optimizer, self.max_norm, self.schedule = batches, optimizer, max_norm, schedule
        self.mesh, self.folder, self.seed, self.checkpoints = mesh, folder, seed, checkpoints
        self.callbacks, self.state, self.record_draws = callbacks, state or {}, record_draws
        self.num_workers = num_workers
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.start, self.carried = start, carried  # of a phase: what trained before it, and no longer does
        self.step, self.last_step, self.stop_wish = start, start + schedule.steps, False
        self.total = self.last_step if total is None else total  # steps of all phases
        self.saved_step = start
        self.unsaved: list[tuple[int, Tensor]] = []  # steps since, each with its (loss, gradient norm)
        self.clock = time.monotonic()

    def fit(self) -> None:
        """Train until the last step. Raises Stopped, with a checkpoint saved, when `stop_wish` was set."""
        try:
            self._fit()
        finally:
            for callback in self.callbacks:
                callback.on_close(self)

    def _fit(self) -> None:
        for callback in self.callbacks:
            callback.on_start(self)
        self.clock = time.monotonic()
        with closing(self.read()) as steps:
            self._run(steps)
        for callback in self.callbacks:
            callback.on_end(self)

    def _run(self, steps: Iterator[list[Batch]]) -> None:
        for micro_batches in steps:
            metrics = self.train_step(micro_batches)
            self.step += 1
            self.unsaved.append((self.step, torch.stack([metrics["loss"], metrics["grad_norm"]])))
            for callback in self.callbacks:
                callback.on_step(self, metrics)
            stop = self.mesh.agree_to_stop(self.stop_wish) and self.step < self.total
            if stop or self.step == self.last_step or self.step % self.checkpoints.every == 0:
                self.save()
            if stop:
                raise shared(
                    Stopped(f"stopped after step {self.step} of {self.total}; the same command goes on")
                )
            self.clock = time.monotonic()

    def read(self) -> Generator[list[Batch], None, None]:
        return read_steps(self.batches, self.step, self.last_step, self.num_workers, self.mesh)

    def train_step(self, micro_batches: Sequence[Batch]) -> Metrics:
        counts = self.batches.units(self.step, self.objective.units)
        sums: dict[str, Tensor] = {}
        draws: list[dict[str, Any]] = []
        for i, batch in enumerate(micro_batches):
            draw = Draw(self.seed, batch["position"], self.mesh.device, self.step)
            draw.hashes = {} if self.record_draws else None
            # What draws from torch's own generator (adapter dropout) is exact at resume too.
            torch.manual_seed(seed_of(self.seed, "torch", self.step, self.mesh.dp_rank, i) % 2**63)
            loss = self.objective.loss(
                self.family, encode(batch, draw, self.stages, self.mesh.device), draw, self.conditions
            )
            mean = torch.stack([total / counts[unit] for unit, total in loss.totals.items()]).sum()
            self.mesh.backward(mean, last=i == len(micro_batches) - 1)
            for name, value in {"loss": mean, **loss.metrics}.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if draw.hashes is not None:
                draws.append({"id": batch["id"], "position": batch["position"], "hashes": draw.hashes})
        rates = self.set_rates()
        grad_norm = self.mesh.step(self.optimizer, self.max_norm)
        return self.measured(sums, rates, grad_norm, time.monotonic() - self.clock, draws)

    def set_rates(self) -> dict[str, float]:
        factor = self.schedule.factor(self.step - self.start)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        return {str(group["rule"]): group["rule_lr"] * factor for group in self.optimizer.param_groups}

    def measured(
        self,
        sums: dict[str, Tensor],
        rates: dict[str, float],
        grad_norm: Tensor,
        seconds: float,
        draws: list[Any],
    ) -> Metrics:
        """What a step is logged as; sums over ranks become means over the global batch.

        `seconds` runs from the end of the step before, so it counts the wait for data too.
        """
        size = self.batches.order.batch_size
        values = self.mesh.sum(torch.stack(list(sums.values())))
        means = {n: v if n == "loss" else v / size for n, v in zip(sums, values, strict=True)}
        metrics: Metrics = {
            "step": self.step + 1,
            "epoch": (self.step + 1) * size / len(self.batches.order),
            "samples": (self.step + 1) * size,
            "loss": means.pop("loss"),
            "lr": rates,
            "grad_norm": grad_norm,
            **means,
            "seconds": seconds,
            "samples_per_second": size / seconds,
            "peak_memory_bytes": self.mesh.peak_memory_bytes(),
        }
        if self.record_draws:
            metrics["draws"] = {"step": self.step + 1, **merged_draws(self.mesh.gather(draws))}
        return metrics

    def weights(self) -> dict[str, Tensor]:
        """Everything that trains, by name."""
        return {name: p for name, p in self.family.components.named_parameters() if p.requires_grad}

    @contextmanager
    def served(self) -> Iterator[None]:
        """The model holds the weights that users get, as its callbacks say."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.served(self.weights()))
            yield

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"weights/{name}": value for name, value in self.weights().items()}
        earlier = dict(self.family.components.named_parameters())
        kept.update({f"{CARRIED}{name}": earlier[name] for name in self.carried})
        for callback in self.callbacks:
            kept.update(callback.tensors())
        return kept

    def check_finite(self) -> None:
        """Refuse what steps since the last checkpoint learned if one diverged; equal on all ranks."""
        values = torch.stack([measured for _, measured in self.unsaved]).tolist() if self.unsaved else []
        for (step, _), (loss, norm) in zip(self.unsaved, values, strict=True):
            if not (isfinite(loss) and isfinite(norm)):
                raise diverged(step, loss, norm, self.saved_step)
        self.unsaved = []

    def save(self) -> None:
        self.check_finite()
        for callback in self.callbacks:
            callback.on_save(self)
        state = {**self.state, "step": self.step}
        folder = self.folder / "checkpoints"
        checkpoint.save(
            folder, self.step, {**self.tensors(), **optimizer_tensors(self.optimizer)}, state, self.mesh
        )
        if self.mesh.main:
            checkpoint.prune(folder, self.checkpoints.keep, self.saved_step, self.step)
        self.saved_step = self.step

    def restore(self, saved: checkpoint.Saved) -> None:
        load_tensors(saved.tensors, {name: t.detach() for name, t in self.tensors().items()}, self.mesh)
        load_optimizer(saved.tensors, self.optimizer, self.mesh)
        self.step = self.saved_step = saved.step


def diverged(step: int, loss: float, norm: float, saved_step: int) -> UserError:
    kept = f"the checkpoint of step {saved_step} is intact" if saved_step else "none is saved"
    return shared(
        UserError(
            f"optimizer.lr: training diverged: step {step} has loss {loss:g} and gradient norm {norm:g}; "
            f"lower optimizer.lr or raise schedule.warmup, in another run with name= ({kept})"
        )
    )


def merged_draws(ranks: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Sample ids and draw hashes of a step in the order of the global batch, whoever drew them."""
    rows: dict[int, dict[str, Any]] = {}
    for micro in (m for rank in ranks for m in rank):
        for i, (position, name) in enumerate(zip(micro["position"], micro["id"], strict=True)):
            if position == PADDING:
                continue
            rows[position] = {"id": name, **{purpose: h[i] for purpose, h in micro["hashes"].items()}}
    ordered = [rows[position] for position in sorted(rows)]
    return {key: [row[key] for row in ordered] for key in ordered[0]}
