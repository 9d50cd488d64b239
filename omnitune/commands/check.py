"""Check a run before it costs anything: its configuration, its model, and every item of its data."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Mistakes
from ..resolve import resolve_first, resolve_phases

if TYPE_CHECKING:
    from ..config.run import Run

WORKERS = 4


@dataclass(frozen=True)
class CheckResult:
    """A run without mistakes: what the user should know, one line each."""

    lines: Sequence[str]
    num_items: int
    epochs: float


def check(run: "Run") -> CheckResult:
    """Decode what training would read of every item; raises UserError with all mistakes."""
    first = resolve_first(run)
    index = first.index()
    dataset, mistakes = first.bound.dataset(index), Mistakes()
    number = len(index.items)
    with ThreadPoolExecutor(WORKERS) as pool:
        for errors in pool.map(dataset.decode_errors, range(number)):
            mistakes.errors += errors
    with mistakes.noted():
        absent = first.shape.check_weights(list(first.shape.components))
    mistakes.raise_all()
    resolve_phases(run)
    lines = list(index.notes)
    if absent:
        lines.append(f"{', '.join(absent)}: not on this machine; `train` fetches them from the hub")
    else:  # the tokenizer of a model that is not here would be fetched
        lines += index.caption_notes(first.shape.cut_captions)
    lines += [f"bucket {one}: {len(index.by_bucket[one])} samples" for one in sorted(index.by_bucket)]
    steps, size = run.steps, run.data.batch_size
    epochs = steps * size / number
    lines.append(f"{number} samples are fine; {steps} steps of {size} are {epochs:.3g} epochs")
    return CheckResult(lines, number, epochs)
