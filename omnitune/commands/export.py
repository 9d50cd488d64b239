"""Write a run's weights in a format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..export import export_format
from ..export.weights import export as write_weights
from ..model import set_up
from ..parallel.mesh import Mesh, Parallel
from ..progress import say
from ..resolve import resolve_run
from ..run_folder import find_checkpoint, read_run
from ..words import Word


@dataclass(frozen=True)
class ExportRequest:
    """Which weights of a run to write, and where."""

    folder: Annotated[Path, Word("runs/NAME")]
    checkpoint: Annotated[int | None, Word("step of the checkpoint; the newest by default")] = None
    raw: Annotated[bool, Word("raw weights where an average is kept")] = False
    format: Annotated[str | None, Word("diffusers, peft, merged or package.module:Class")] = None
    merged: Annotated[bool, Word("the same as --format merged: adapters added to the weights")] = False
    out: Annotated[Path | None, Word("folder to write to; weights/ of the run by default")] = None


def export(request: ExportRequest) -> Path:
    """Write a checkpoint's weights in a format, and prove them; returns their folder."""
    run = read_run(request.folder)
    saved = find_checkpoint(request.folder, request.checkpoint)
    resolved, mesh = resolve_run(run), Mesh(Parallel())
    name = "merged" if request.merged else request.format
    form = export_format(resolved.family_class, name)
    suffix = f"-{form.name}" if name else ""
    out = request.out or request.folder / (("weights-raw" if request.raw and run.ema else "weights") + suffix)
    if request.out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name a new folder")
    family = set_up(resolved, mesh, saved, average=not request.raw)
    say(str(write_weights(family, resolved.claims.all_trained, mesh, out, form)))
    return out
