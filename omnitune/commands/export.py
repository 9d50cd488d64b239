"""Write a run's weights in a format."""

from pathlib import Path

from ..errors import UserError
from ..export import export_format
from ..export.weights import export as write_weights
from ..model import set_up
from ..parallel.mesh import Mesh, Parallel
from ..progress import say
from ..requests import ExportRequest
from ..resolve import resolve_run
from ..run_folder import find_checkpoint, read_run


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
