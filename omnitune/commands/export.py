"""Write a run's weights in the published layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..export.weights import export as write_weights
from ..model import set_up
from ..parallel.mesh import Mesh, Parallel
from ..resolve import resolve_run
from ..run_folder import find_checkpoint, read_run
from .words import Word


@dataclass(frozen=True)
class ExportRequest:
    """Which weights of a run to write, and where."""

    folder: Annotated[Path, Word("runs/NAME")]
    checkpoint: Annotated[int | None, Word("step of the checkpoint; the newest by default")] = None
    raw: Annotated[bool, Word("raw weights where an average is kept")] = False
    merged: Annotated[bool, Word("whole networks, adapters added to their weights")] = False
    out: Annotated[Path | None, Word("folder to write to; weights/ of the run by default")] = None


def export(request: ExportRequest) -> Path:
    """Write a checkpoint's weights in the published layout; returns their folder."""
    run = read_run(request.folder)
    saved = find_checkpoint(request.folder, request.checkpoint)
    resolved, mesh = resolve_run(run), Mesh(Parallel())
    name = "weights-raw" if request.raw and run.ema else "weights"
    out = request.out or request.folder / (f"{name}-merged" if request.merged else name)
    if request.out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name a new folder")
    family = set_up(resolved, mesh, saved, average=not request.raw)
    write_weights(family, resolved.claims.ever, mesh, out, request.merged)
    return out
