"""Check a run before it costs anything: its configuration, its model, and every item of its data."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import session
from .data.index import Samples
from .types import UserError

if TYPE_CHECKING:
    from .config import Run

WORKERS = 4


def check_run(run: "Run") -> None:
    """Decode what training would read of every item; raises UserError with all mistakes, prints a summary."""
    job = session.make_job(run)
    index = job.index()
    session.sample_bucket(run, job, index.buckets)
    samples = job.samples(index)
    with ThreadPoolExecutor(WORKERS) as pool:
        faults = [f for f in pool.map(lambda i: _fault(samples, i), range(len(index.items))) if f]
    if faults:
        raise UserError("\n".join(faults))
    job.shape.check_weights(list(job.shape.components))
    for note in index.notes:
        print(note)
    for bucket, members in sorted(index.by_bucket.items()):
        print(f"bucket {bucket}: {len(members)} samples")
    steps = run.schedule.steps
    epochs = steps * run.data.batch_size / len(index.items)
    print(
        f"{len(index.items)} samples are fine; {steps} steps of {run.data.batch_size} are {epochs:.3g} epochs"
    )


def _fault(samples: Samples, i: int) -> str | None:
    try:
        for variant in range(samples.data.variants):
            samples.pixels(samples.inputs(i, variant))
    except UserError as error:
        return str(error)
    return None
