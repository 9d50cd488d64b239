"""Check a run before it costs anything: its configuration, its model, and every item of its data."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .. import config
from ..errors import Mistakes
from ..resolve import Job
from .train import worked_out

if TYPE_CHECKING:
    from ..config.run import Run

WORKERS = 4


def check_run(run: "Run") -> None:
    """Decode what training would read of every item; raises UserError with all mistakes, prints a summary."""
    job = Job(run.parts()[0].run, config.validate_options)
    index = job.index()
    samples, mistakes = job.samples(index), Mistakes()
    with ThreadPoolExecutor(WORKERS) as pool:
        for errors in pool.map(samples.faults, range(len(index.items))):
            mistakes.errors += errors
    with mistakes.noted():
        absent = job.shape.check_weights(list(job.shape.components))
    mistakes.raise_all()
    worked_out(run)
    # The tokenizer of a model that is not here would be fetched for the second kind.
    for note in [*index.notes, *([] if absent else index.caption_notes(job.shape.cut_captions))]:
        print(note)
    if absent:
        print(f"{', '.join(absent)}: not on this machine; `train` fetches them from the hub")
    for bucket, members in sorted(index.by_bucket.items()):
        print(f"bucket {bucket}: {len(members)} samples")
    steps = run.steps
    epochs = steps * run.data.batch_size / len(index.items)
    print(
        f"{len(index.items)} samples are fine; {steps} steps of {run.data.batch_size} are {epochs:.3g} epochs"
    )
