"""Check a run before it costs anything: its configuration, its model, and every item of its data."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.loader import usable_cores
from ..files import Hashes, Version, digest
from ..progress import Progress, Working
from ..resolve import ResolvedRun, resolve_first, resolve_phases

if TYPE_CHECKING:
    from ..config.run import Run
    from ..data.dataset import Dataset, Index

DECODED = "decoded 1"
"""The name by which what was decoded is remembered; another number when decoders come to find more."""


@dataclass(frozen=True)
class CheckResult:
    """A run without mistakes: what the user should know, one line each."""

    lines: Sequence[str]
    num_items: int
    epochs: float


def check(run: "Run") -> CheckResult:
    """Decode what training would read of every item; raises UserError with all mistakes."""
    absent: list[str] = []
    first = resolve_first(run)
    with Working("reading the data") as reading:

        def look(found: "Index") -> None:
            reading.stop()
            _decode(first, found)
            with first.mistakes.noted():
                absent.extend(first.shape.check_weights(list(first.shape.components)))

        index = first.index(look=look)
    resolve_phases(run)
    lines = list(index.notes)
    if absent:
        lines.append(f"{', '.join(absent)}: not on this machine; `train` fetches them from the hub")
    else:  # the tokenizer of a model that is not here would be fetched
        lines += index.caption_notes(first.shape.cut_captions)
    lines += [f"bucket {one}: {len(index.by_bucket[one])} samples" for one in sorted(index.by_bucket)]
    steps, size, number = run.steps, run.data.batch_size, len(index.items)
    epochs = steps * size / number
    lines.append(f"{number} samples are fine; {steps} steps of {size} are {epochs:.3g} epochs")
    return CheckResult(lines, number, epochs)


def _decode(resolved: ResolvedRun, index: "Index") -> None:
    """Decode, on all cores, what was not decoded by an earlier check; mistakes are noted."""
    dataset, memo = resolved.bound.dataset(index), Hashes(resolved.memo_folder)
    number, variants = len(index.items), resolved.run.data.variants
    keys = [_key(dataset, i, variants) for i in range(number)]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    unknown = sorted(i for key, i in first.items() if memo.recall(DECODED, key) is None)
    progress = Progress("check", number, number - len(unknown))
    progress.update(progress.done)
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            for i, errors in zip(unknown, pool.map(dataset.decode_errors, unknown), strict=True):
                resolved.mistakes.errors += errors
                if not errors:
                    memo.remember(DECODED, keys[i], "")
                progress.update(progress.done + 1)
    finally:
        progress.close()


def _key(dataset: "Dataset", i: int, variants: int) -> Version:
    """Name what an item brings by contents and views, as a file of that name."""
    shown = [dataset.input_keys(dataset.inputs(i, variant)) for variant in range(variants)]
    media = {f"{name} {key}" for one in shown for name, key in one.items() if name != "caption"}
    return Version(digest(*sorted(media)), 0, 0)
