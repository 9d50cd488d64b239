"""Micro-batches in the run's order, read ahead by workers."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..batch import Batch
from ..errors import UserError
from ..random import Draw
from .cache import StageCache, stack_rows
from .dataset import Dataset, EditsInputs, Inputs
from .order import Order, Row, slices

if TYPE_CHECKING:
    from ..parallel.mesh import Mesh


PADDING = -1
"""Position of a padding row, which is of no sample."""
READERS = 2
"""Processes that decode ahead, where none are stated and there are cores for them."""


def usable_cores() -> int:
    """How many cores this process may use, which a cluster or a container limits."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


@dataclass(eq=False)
class MicroBatches(TorchDataset[Batch | UserError]):
    """(step, number) -> the CPU tensors of one micro-batch of this rank."""

    dataset: Dataset
    order: Order
    conditions: Sequence[EditsInputs]
    cache: StageCache
    live_needs: set[str]
    cut: tuple[int, int, int | None]
    """Rank, number of ranks, rows of a micro-batch."""

    @property
    def decodes(self) -> bool:
        """Whether pixels are read anew, so that a rank may meet a broken file in any step."""
        return not self.live_needs.isdisjoint(self.dataset.media)

    def rows(self, step: int) -> list[list[Row]]:
        rank, ranks, size = self.cut
        return slices(self.order.batch(step), rank, ranks, size)

    def units(self, step: int, units_of: Callable[[Mapping[str, int]], Mapping[str, int]]) -> dict[str, int]:
        """Count the units that an objective averages over in the global batch of a step."""
        return self.order.units(step, lambda i: units_of(self.dataset.units(i)))

    def __getitem__(self, key: tuple[int, int]) -> Batch | UserError:
        step, number = key
        try:
            return self.batch(self.rows(step)[number])
        except UserError as error:  # a worker would bury the message in a traceback
            return error

    def batch(self, rows: Sequence[Row]) -> Batch:
        inputs = [self.inputs(row) for row in rows]
        weights, positions = [row.weight for row in rows], [row.position for row in rows]
        if (padding := self.dataset.padding_row(inputs)) is not None:
            inputs, weights, positions = [*inputs, padding], [*weights, 0.0], [*positions, PADDING]
        ragged = [name for stage in self.cache.stages for name in stage.ragged]
        batch = stack_rows([self.row(one) for one in inputs], [*ragged, *self.dataset.ragged])
        batch["row_weight"], batch["position"] = torch.tensor(weights), positions
        return batch

    def inputs(self, row: Row) -> Inputs:
        # Pixels that are read anew are windowed and cropped anew; cached ones are one of N variants.
        variant = f"position {row.position}" if self.decodes else self.dataset.variant(row.position)
        inputs = self.dataset.inputs(row.index, variant)
        draw = Draw(self.dataset.seed, [row.position])
        for condition in self.conditions:
            inputs = condition.inputs(inputs, draw)
        return inputs

    def row(self, inputs: Inputs) -> Batch:
        row = self.dataset.row_metadata(inputs)
        for name in self.live_needs.intersection(self.dataset.media):
            row[name] = self.dataset.load(name, inputs)
        for name, key in self.cache.keys(self.dataset.input_keys(inputs)).items():
            row.update(self.cache.stores[name].read(key))
        return row


def _keys(batches: MicroBatches, start: int, stop: int) -> Iterator[tuple[int, int]]:
    for step in range(start, stop):
        yield from ((step, i) for i in range(len(batches.rows(step))))


def _leave_signals_to_the_parent(worker: int) -> None:
    # Terminals and clusters signal the whole process group; the parent still needs samples to end its step.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def read_steps(
    batches: MicroBatches, start: int, stop: int, num_workers: int, mesh: "Mesh"
) -> Generator[list[Batch], None, None]:
    """The micro-batches of each step from `start` to before `stop`, one list a step.

    Where pixels are decoded, ranks agree before each step that all have theirs: a broken file ends all.
    """
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        sampler=_keys(batches, start, stop),
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_parent,
    )
    before = set(multiprocessing.active_children())
    stream = iter(loader)
    workers = set(multiprocessing.active_children()) - before
    try:
        for step in range(start, stop):
            whole = partial(_whole, [next(stream) for _ in batches.rows(step)])
            yield mesh.on_all_ranks(whole) if batches.decodes else whole()
    finally:
        del stream  # asks the workers to end
        for worker in workers:  # they do not heed SIGTERM, with which Python would end them when it exits
            if worker.is_alive():
                worker.kill()


def _whole(found: Sequence[Batch | UserError]) -> list[Batch]:
    if mistake := next((b for b in found if isinstance(b, UserError)), None):
        raise mistake
    return [b for b in found if not isinstance(b, UserError)]
