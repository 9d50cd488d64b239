"""The training loop: one for every family, objective, condition and mesh."""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .batch import Batch
from .callbacks.base import Callback, Record, Samples, check_metrics, checked_state, load_states
from .callbacks.record import Measured, Recorder, RowTable, merged_draws
from .conditions.base import Condition
from .data.loader import MicroBatches, read_steps
from .errors import Stopped, UserError, shared
from .export.weights import CARRIED
from .families.base import Family
from .objectives.base import Objective
from .optim import Schedule
from .parallel.device import Meter
from .parallel.mesh import Mesh
from .parallel.state import OPTIMIZER, check_stored, load_optimizer, load_tensors, optimizer_tensors
from .random import Draw, seed_of
from .stages import Stage, encode

RESERVED = ("weights/", CARRIED, OPTIMIZER)
"""How names of the run's own tensors begin in a checkpoint."""


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Steps a placed family; everything it holds is a value that it knows by its protocol only."""

    family: Family
    objective: Objective
    conditions: Sequence[Condition]
    stages: Sequence[Stage]
    batches: MicroBatches
    optimizer: torch.optim.Optimizer
    max_norm: float | None
    schedule: Schedule
    mesh: Mesh
    folder: Path
    seed: int
    checkpoints: checkpoint.Checkpoints
    callbacks: Sequence[Callback]
    state: dict[str, Any]
    """What every checkpoint says of the run."""
    record_draws: bool
    num_workers: int
    start: int
    """The step that the phase begins after."""
    total: int
    """Steps of all phases."""
    carried: Collection[str]
    """What trained before the phase, and no longer does."""

    def __post_init__(self) -> None:
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = self.saved_step = self.start
        self.last_step = self.start + self.schedule.steps
        self.stop_wish = self.finish_wish = False
        self.recorder = Recorder(self.give_record)
        self.wants_rows = any(callback.wants_rows for callback in self.callbacks)
        self.meter = Meter(self.mesh.device)

    def fit(self) -> None:
        """Train until the last step. Raises Stopped, with a checkpoint saved, when `stop_wish` was set."""
        with ExitStack() as ending:  # each of them, whatever the others raise
            for callback in reversed(self.callbacks):
                ending.callback(callback.on_close, self)
            ending.callback(self.recorder.flush)
            for callback in self.callbacks:
                callback.on_start(self)
            self.mesh.reshard()
            _ = self.tensors()  # names that cannot be saved are told before the first step
            if self.finish_wish and self.last_step == self.total:  # not between phases
                self.last_step = self.total = self.step
                if self.step == 0:  # a run that never steps leaves a checkpoint too
                    self.save()
            self.meter.begin()
            with closing(self.read()) as steps:
                self._run(steps)
            for callback in self.callbacks:
                callback.on_end(self)

    def _run(self, steps: Iterator[list[Batch]]) -> None:
        while self.step < self.last_step:
            measured = self.train_step(next(steps))
            self.step += 1
            self.recorder.add(measured, last=self.step == self.last_step)
            self.stop_wish |= self.recorder.diverged is not None
            for callback in self.callbacks:
                callback.on_step(self)
            self.mesh.reshard()  # after samples and held-out losses
            stop, self.finish_wish = self.mesh.agree(self.stop_wish, self.finish_wish)
            if self.finish_wish and self.last_step == self.total:  # not between phases: the next begins there
                self.last_step = self.total = self.step
            stop = stop and self.step < self.total
            if stop or self.step == self.last_step or self.step % self.checkpoints.every == 0:
                self.save()
            if stop:
                raise shared(
                    Stopped(f"stopped after step {self.step} of {self.total}; the same command goes on")
                )
            self.meter.begin()

    def read(self) -> Generator[list[Batch], None, None]:
        return read_steps(self.batches, self.step, self.last_step, self.num_workers, self.mesh)

    def train_step(self, micro_batches: Sequence[Batch]) -> Measured:
        device, counts = self.mesh.device, self.batches.units(self.step, self.objective.units)
        table = RowTable(self.batches, self.step, self.objective, device) if self.wants_rows else None
        sums: dict[str, Tensor] = {}
        draws: list[dict[str, Any]] = []
        for i, batch in enumerate(micro_batches):
            draw = Draw(self.seed, batch["position"], device, self.step)
            draw.hashes = {} if self.record_draws else None
            # What draws from torch's own generator (adapter dropout) is exact at resume too.
            torch.manual_seed(seed_of(self.seed, "torch", self.step, self.mesh.dp_rank, i) % 2**63)
            # The encoded batch has no name here, so that it is freed with the backward pass.
            loss = self.objective.loss(
                self.family, encode(batch, draw, self.stages, device), draw, self.conditions
            )
            check_metrics(loss.metrics)
            mean = torch.stack([total / counts[unit] for unit, total in loss.totals.items()]).sum()
            self.mesh.backward(mean, last=i == len(micro_batches) - 1)
            for name, value in {"loss": mean, **loss.metrics}.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if draw.hashes is not None:
                draws.append({"id": batch["id"], "position": batch["position"], "hashes": draw.hashes})
            if table:
                table.add(batch, loss)
        rates = self.set_rates()
        grad_norm = self.mesh.step(self.optimizer, self.max_norm)
        return self.measured(sums, rates, grad_norm, draws, table)

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
        draws: list[dict[str, Any]],
        table: RowTable | None,
    ) -> Measured:
        """What a step is recorded as; sums over ranks become means over the global batch."""
        order, span = self.batches.order, self.meter.end()
        size, seen = order.batch_size, (self.step + 1) * order.batch_size
        values = self.mesh.sum(torch.stack(list(sums.values())))
        record = Record(
            step=self.step + 1, epoch=seen / len(order), samples=seen, loss=nan, lr=MappingProxyType(rates),
            grad_norm=nan, means=dict.fromkeys(list(sums)[1:], nan), seconds=nan,
            samples_per_second=nan, peak_memory_bytes=self.meter.peak,
            draws=merged_draws(self.mesh.gather(draws)) if self.record_draws else None,
        )  # fmt: skip
        numbers = torch.cat([values[:1], grad_norm.reshape(1), values[1:] / size])
        if table:
            self.mesh.sum(table.table)
        return Measured(record, numbers, span, size, table)

    def give_record(self, record: Record) -> None:
        if self.mesh.main:
            for callback in self.callbacks:
                callback.on_record(record)

    def report_samples(self, samples: Samples) -> None:
        """Give what was generated to every callback, on the main rank."""
        if self.mesh.main:
            for callback in self.callbacks:
                callback.on_samples(samples)

    def weights(self) -> dict[str, Tensor]:
        """Everything that trains, by name."""
        return {name: p for name, p in self.family.components.named_parameters() if p.requires_grad}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """For a while, hold the weights that users get, as the callbacks say."""
        self.mesh.reshard()
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.averaged_weights(self.weights()))
            stack.callback(self.mesh.reshard)
            yield

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"weights/{name}": value for name, value in self.weights().items()}
        earlier = dict(self.family.components.named_parameters())
        kept.update({f"{CARRIED}{name}": earlier[name] for name in self.carried})
        for name, callback in self.named_callbacks():
            for key, value in callback.tensors().items():
                if key in kept or key.startswith(RESERVED):
                    raise UserError(
                        f"callbacks: {name}: tensors() gives {key}, which the checkpoint has of the run or "
                        "of another callback; give it a name of its own"
                    )
                kept[key] = value
        return kept

    def save(self) -> None:
        self.recorder.check(self.saved_step)
        for callback in self.callbacks:
            callback.on_save(self)
        kept = {name: stored for name, one in self.named_callbacks() if (stored := checked_state(name, one))}
        state = {**self.state, "step": self.step, **({"callbacks": kept} if kept else {})}
        folder = self.folder / "checkpoints"
        checkpoint.save(
            folder, self.step, {**self.tensors(), **optimizer_tensors(self.optimizer)}, state, self.mesh
        )
        if self.mesh.main:
            checkpoint.prune(folder, self.checkpoints.keep, self.saved_step, self.step)
        self.saved_step = self.step

    def restore(self, saved: checkpoint.Saved) -> None:
        mine = {name: t.detach() for name, t in self.tensors().items()}
        check_stored(saved.tensors, mine)
        load_tensors(saved.tensors, mine, self.mesh)
        load_optimizer(saved.tensors, self.optimizer, self.mesh)
        self.load_states(saved)
        self.step = self.saved_step = saved.step

    def load_states(self, saved: checkpoint.Saved) -> None:
        """Give callbacks what they kept, as far as a checkpoint has something of them."""
        load_states(self.named_callbacks(), saved.state().get("callbacks", {}))

    def named_callbacks(self) -> list[tuple[str, Callback]]:
        """Each with its class, and a number where several are of one."""
        kinds = [f"{type(one).__module__}:{type(one).__qualname__}" for one in self.callbacks]
        numbers = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
        names = [f"{kind}#{n}" if n else kind for kind, n in zip(kinds, numbers, strict=True)]
        return list(zip(names, self.callbacks, strict=True))
