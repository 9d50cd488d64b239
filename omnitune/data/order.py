"""Which samples each step trains on: a pure function of (seed, step), in constant time.

A bucket is an endless stream, the concatenation of its epochs' permutations; its batch j holds items
j * B to (j + 1) * B, so what is left over of one epoch opens the next. Buckets take turns in proportion
to their number of items. Ranks and micro-batches only cut a global batch into slices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..random import permuted, seed_of
from .sizes import AnyBucket


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a global batch."""

    position: int
    """Counts samples across the whole run; the key of every draw after the cache."""
    index: int
    """Into the items of the data."""
    epoch: int
    """Of the sample's bucket."""
    weight: float = 1.0
    """0 for a row that only fills up a rank or a micro-batch."""


@dataclass(frozen=True)
class Turns:
    """Shares steps out among buckets in proportion to their sizes, never more than one batch off a level.

    A binary tree of two-way splits: step s goes left exactly if floor((s + 1) w / W + phase) exceeds
    floor(s w / W + phase), w of W being the left weight. Every count is a closed formula of s.
    """

    sizes: tuple[int, ...]
    seed: int

    def turn(self, step: int) -> tuple[int, int]:
        """(bucket number, how many batches that bucket had before)."""
        low, high = 0, len(self.sizes)
        while high - low > 1:
            middle = (low + high) // 2
            left, total = sum(self.sizes[low:middle]), sum(self.sizes[low:high])
            phase = seed_of(self.seed, "turns", low, high) % total
            before = (step * left + phase) // total
            if ((step + 1) * left + phase) // total > before:
                step, high = before, middle
            else:
                step, low = step - before, middle
        return low, step


class Order:
    """The sample order of a run over items that were assigned to buckets."""

    def __init__(self, buckets: Mapping[AnyBucket, Sequence[int]], batch_size: int, seed: int):
        self.buckets = sorted(buckets)
        self.items = [buckets[b] for b in self.buckets]
        self.batch_size, self.seed = batch_size, seed
        self.turns = Turns(tuple(len(i) for i in self.items), seed)

    def __len__(self) -> int:
        """Items in one epoch."""
        return sum(len(i) for i in self.items)

    def batch(self, step: int) -> list[Row]:
        """The rows of the global batch of a step; the first step is 0."""
        number, turn = self.turns.turn(step)
        items = self.items[number]
        rows = []
        for i in range(self.batch_size):
            epoch, place = divmod(turn * self.batch_size + i, len(items))
            index = items[permuted(place, len(items), self.seed, "order", str(self.buckets[number]), epoch)]
            rows.append(Row(step * self.batch_size + i, index, epoch))
        return rows

    def units(self, step: int, count: Callable[[int], Mapping[str, int]]) -> dict[str, int]:
        """Sum `count` (units of one item, by name) over the global batch: the denominators of its losses."""
        total: dict[str, int] = {}
        for row in self.batch(step):
            for unit, number in count(row.index).items():
                total[unit] = total.get(unit, 0) + number
        return total


def slices(rows: Sequence[Row], rank: int, ranks: int, micro_batch_size: int | None) -> list[list[Row]]:
    """Cut a global batch into the micro-batches of one data-parallel rank, all ranks alike.

    Where it does not divide, rows of weight 0 (copies of the last one) fill up: every rank calls the same
    modules equally often on equal shapes.
    """
    per_rank = -(-len(rows) // ranks)
    size = min(micro_batch_size or per_rank, per_rank)
    steps = -(-per_rank // size)
    mine = list(rows[rank * per_rank : (rank + 1) * per_rank])
    padding = Row(rows[-1].position, rows[-1].index, rows[-1].epoch, 0.0)
    mine += [padding] * (steps * size - len(mine))
    return [mine[i * size : (i + 1) * size] for i in range(steps)]
