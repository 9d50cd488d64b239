"""Fill the cache: run each cacheable stage over what is not stored yet, a batch of pixels at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..files import writable
from ..progress import Progress
from ..random import Draw
from ..stages import MEDIA, Stage
from .cache import Store, split_rows, stack_rows
from .captions.index import Index, Samples
from .dataset import Inputs

if TYPE_CHECKING:
    from ..conditions.base import Condition
    from ..families.base import Family
    from ..parallel.mesh import Mesh
    from ..resolve import Job

BATCH_PIXELS = 1 << 20
"""Frames x height x width of what is encoded at once, about: small pictures together, clips alone."""
BATCH_ROWS = 16


@dataclass(frozen=True)
class Wanted:
    """One cache entry that is not there yet, and a sample that has it."""

    key: str
    inputs: Inputs
    keys: dict[str, str]
    bucket: Any
    """What groups rows that can be encoded together."""


@dataclass
class Filled:
    """What filling the cache did."""

    stored: dict[str, int] = field(default_factory=dict)
    """Stage -> entries that were there already."""
    encoded: dict[str, int] = field(default_factory=dict)
    """Stage -> entries that were encoded now."""

    @property
    def complete(self) -> bool:
        """Whether all that is cached was there before."""
        return bool(self.encoded) and not any(self.encoded.values())

    def __str__(self) -> str:
        parts = [f"{name} {self.stored[name]} stored, {n} encoded" for name, n in self.encoded.items()]
        return "cache: " + "; ".join(parts)


def fill(job: "Job", index: Index, mesh: "Mesh") -> Filled:
    """Encode what is missing, stage by stage; only the components of one stage are loaded at a time."""
    filled = Filled()
    samples = job.samples(index)
    family: Family | None = None
    for shape_stage in job.cached:
        store = job.stores[shape_stage.name]
        mesh.together(store.refresh)
        entries = list(_entries(job, samples, shape_stage))
        missing = set(store.missing([e.key for e in entries]))
        unique = {e.key: e for e in entries}
        wanted = [e for e in unique.values() if e.key in missing]
        filled.encoded[shape_stage.name] = len(wanted)
        filled.stored[shape_stage.name] = len(unique) - len(wanted)
        if not wanted:
            continue
        mesh.each(partial(_check_writable, store, shape_stage.name, len(wanted)))
        components = sorted({use.split(".")[0] for use in shape_stage.uses})
        family = family or job.load_family(str(mesh.device), [])
        family.fetch(components)
        stage = next(s for s in family.stages if s.name == shape_stage.name)
        _encode(job, samples, stage, store, wanted, mesh)
        family.drop(components)
        mesh.together(store.refresh)
    return filled


def _check_writable(store: Store, name: str, missing: int) -> None:
    if not writable(store.index):
        raise UserError(
            f"data.cache: {store.folder} cannot be written to, and lacks {missing} entries of {name}; "
            "make it writable, name another folder, or give null"
        )


def _entries(job: "Job", samples: Samples, stage: Stage) -> Iterator[Wanted]:
    def entry(inputs: Inputs, bucket: Any) -> Wanted:
        keys = job.keys.of(samples.roots(inputs))
        return Wanted(keys[stage.name], inputs, keys, bucket)

    for inputs, bucket in samples.every():
        for one in all_variants(job.run.conditions, inputs):
            yield entry(one, bucket)
    for inputs in samples.always(stage.needs):
        yield entry(inputs, samples.index.buckets[0])


def _encode(
    job: "Job", samples: Samples, stage: Stage, store: Store, wanted: Sequence[Wanted], mesh: "Mesh"
) -> None:
    groups = _groups(wanted, needs_files(stage, job.cached))
    mine = groups[mesh.dp_rank :: mesh.dp_size]
    progress = Progress(f"encode {stage.name}", sum(len(g) for g in mine)) if mesh.main else None

    def work() -> None:
        try:
            for group in mine:
                _encode_group(job, samples, stage, store, group)
                if progress:
                    progress.add(len(group))
        finally:  # a signal or a file that cannot be decoded: what is encoded stays
            store.flush()

    try:
        with torch.no_grad():
            mesh.each(work)
    finally:
        if progress:
            progress.close()


def _encode_group(job: "Job", samples: Samples, stage: Stage, store: Store, group: Sequence[Wanted]) -> None:
    made = {s.name: s for s in job.cached}
    rows: list[dict[str, Any]] = []
    for entry in group:
        row: dict[str, Any] = {}
        for need in stage.needs:
            if source := next((s for s in made.values() if need in s.gives), None):
                row[need] = job.stores[source.name].read(entry.keys[source.name])[need]
            else:
                row[need] = samples.load(need, entry.inputs)
        rows.append(row)
    ragged = [*(name for s in made.values() for name in s.ragged), *samples.ragged]
    draw = Draw(job.run.seed, [entry.key for entry in group])
    given = stage.run(stack_rows(rows, ragged), draw)
    for entry, tensors in zip(group, split_rows(given, len(group)), strict=True):
        store.add(entry.key, tensors)


def needs_files(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether what a stage is given has the size of its sample's bucket."""
    above = [s for s in stages if set(s.gives) & set(stage.needs)]
    return not set(stage.needs).isdisjoint(MEDIA) or any(needs_files(s, stages) for s in above)


def _groups(wanted: Sequence[Wanted], by_size: bool) -> list[list[Wanted]]:
    """Batches to encode together: of one bucket where pixels are read."""
    if not by_size:
        return [list(wanted[i : i + BATCH_ROWS]) for i in range(0, len(wanted), BATCH_ROWS)]
    found = []
    for bucket in sorted({w.bucket for w in wanted}):
        rows = min(BATCH_ROWS, max(1, BATCH_PIXELS // bucket.size))
        mine = [w for w in wanted if w.bucket == bucket]
        found += [mine[i : i + rows] for i in range(0, len(mine), rows)]
    return found


def all_variants(conditions: "Sequence[Condition]", inputs: Inputs) -> list[Inputs]:
    """Every combination of what the conditions can make of a sample."""
    found = [inputs]
    for condition in conditions:
        found = [variant for one in found for variant in condition.variants(one)]
    return found
