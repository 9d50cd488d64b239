"""Encode latents and texts ahead of training."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import UserError, shared
from ..parallel.mesh import Mesh
from ..resolve import prepare

if TYPE_CHECKING:
    from ..config.run import Run


def cache(run: "Run", verify: bool = False) -> list[str]:
    """Fill the cache of a run in this process; says what was done. `verify` hashes every file again."""
    mesh = Mesh(run.parallel)
    try:
        return list(cache_on(run, mesh, verify))
    finally:
        mesh.close()


def cache_on(run: "Run", mesh: Mesh, verify: bool = False) -> Iterator[str]:
    """Fill the cache of a run, phase by phase; yields what was done, line by line, on the main rank.

    Every rank calls it and takes its share. `verify` hashes every file again.
    """
    if run.data.cache is None:
        raise shared(UserError("data.cache: is null, so there is nothing to fill; name a folder"))
    prepared = prepare(run, mesh, verify=verify)
    weights = mesh.on_main(lambda: prepared.first.weight_hashes(verify))
    for phase in prepared.phases:
        filled = phase.fill_cache(prepared.index, phase.open_cache(weights), mesh)
        if mesh.main and filled.encoded:
            yield str(filled)
    if mesh.main:
        yield from prepared.index.notes
        yield from prepared.index.caption_notes(prepared.first.shape.cut_captions)
