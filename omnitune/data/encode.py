"""Fill the cache: run each cacheable stage over what is not stored yet, a batch of pixels at a time."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..files import writable
from ..progress import Progress
from ..random import Draw
from ..stages import Stage
from .cache import StageCache, Store, split_rows, stack_rows
from .dataset import Dataset, EditsInputs, Inputs
from .sizes import AnyBucket

if TYPE_CHECKING:
    from ..families.base import Family
    from ..parallel.mesh import Mesh

BATCH_PIXELS = 1 << 20
"""Frames x height x width of what is encoded at once, about: small pictures together, clips alone."""
BATCH_ROWS = 16


@dataclass(frozen=True)
class Wanted:
    """One cache entry that is not there yet, and a sample that has it."""

    key: str
    inputs: Inputs
    keys: dict[str, str]
    bucket: AnyBucket
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


def fill(
    cache: StageCache,
    dataset: Dataset,
    conditions: Sequence[EditsInputs],
    load_family: "Callable[[], Family]",
    mesh: "Mesh",
) -> Filled:
    """Encode what is missing, stage by stage; only the components of one stage are loaded at a time.

    `load_family` gives a family of which nothing is loaded yet.
    """
    filled = Filled()
    family: Family | None = None
    for stage in cache.stages:
        store = cache.stores[stage.name]
        mesh.on_main(store.refresh)
        unique = {e.key: e for e in _entries(conditions, dataset, cache, stage)}
        missing = set(store.missing(list(unique)))
        wanted = [e for e in unique.values() if e.key in missing]
        filled.encoded[stage.name] = len(wanted)
        filled.stored[stage.name] = len(unique) - len(wanted)
        if not wanted:
            continue
        mesh.on_all_ranks(partial(_check_writable, store, stage.name, len(wanted)))
        components = sorted({use.split(".")[0] for use in stage.uses})
        family = family or load_family()
        family.fetch(components)
        loaded = next(s for s in family.stages if s.name == stage.name)
        _encode(loaded, cache, dataset, wanted, mesh)
        family.drop(components)
        mesh.on_main(store.refresh)
    return filled


def _check_writable(store: Store, name: str, missing: int) -> None:
    if not writable(store.index):
        raise UserError(
            f"data.cache: {store.folder} cannot be written to, and lacks {missing} entries of {name}; "
            "make it writable, name another folder, or give null"
        )


def _entries(
    conditions: Sequence[EditsInputs], dataset: Dataset, cache: StageCache, stage: Stage
) -> Iterator[Wanted]:
    samples = chain(
        ((one, bucket) for inputs, bucket in dataset.entries() for one in all_variants(conditions, inputs)),
        ((inputs, dataset.index.buckets[0]) for inputs in dataset.shared_entries(stage.needs)),
    )
    for inputs, bucket in samples:
        keys = cache.keys(dataset.input_keys(inputs))
        yield Wanted(keys[stage.name], inputs, keys, bucket)


def _encode(
    stage: Stage, cache: StageCache, dataset: Dataset, wanted: Sequence[Wanted], mesh: "Mesh"
) -> None:
    """Share rows out among the ranks and encode them."""
    groups = _groups(wanted, needs_files(stage, cache.stages, dataset.media))
    mine = groups[mesh.dp_rank :: mesh.dp_size]
    progress = Progress(f"encode {stage.name}", sum(len(g) for g in mine)) if mesh.main else None

    def work() -> None:
        try:
            for group in mine:
                _encode_group(stage, cache, dataset, group)
                if progress:
                    progress.update(progress.done + len(group))
        finally:  # a signal or a file that cannot be decoded: what is encoded stays
            cache.stores[stage.name].flush()

    try:
        with torch.no_grad():
            mesh.on_all_ranks(work)
    finally:
        if progress:
            progress.close()


def _encode_group(stage: Stage, cache: StageCache, dataset: Dataset, group: Sequence[Wanted]) -> None:
    """Run one loaded stage over rows of one size, and store what it gives."""
    rows: list[dict[str, Any]] = []
    for entry in group:
        row: dict[str, Any] = {}
        for need in stage.needs:
            if source := next((s for s in cache.stages if need in s.gives), None):
                row[need] = cache.stores[source.name].read(entry.keys[source.name])[need]
            elif need in dataset.media:
                row[need] = dataset.load(need, entry.inputs)
            else:
                assert need == "caption", (stage.name, need)
                row[need] = entry.inputs["caption"]
        rows.append(row)
    ragged = [*(name for s in cache.stages for name in s.ragged), *dataset.ragged]
    draw = Draw(dataset.seed, [entry.key for entry in group])
    given = stage(stack_rows(rows, ragged), draw)
    for entry, tensors in zip(group, split_rows(given, len(group)), strict=True):
        cache.stores[stage.name].add(entry.key, tensors)


def needs_files(stage: Stage, stages: Sequence[Stage], media: Collection[str]) -> bool:
    """Whether what a stage is given has the size of its sample's bucket."""
    above = [s for s in stages if set(s.gives) & set(stage.needs)]
    return not set(stage.needs).isdisjoint(media) or any(needs_files(s, stages, media) for s in above)


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


def all_variants(conditions: Sequence[EditsInputs], inputs: Inputs) -> list[Inputs]:
    """Every combination of what the conditions can make of a sample."""
    found = [inputs]
    for condition in conditions:
        found = [variant for one in found for variant in condition.variants(one)]
        if not found:
            raise UserError(f"conditions: variants() of {condition.name} gives none; give at least [inputs]")
    return found
