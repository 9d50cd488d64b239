"""Write a run's weights in a format."""

from pathlib import Path

from ..errors import UserError
from ..export import export_format
from ..export.weights import export
from ..model import set_up
from ..parallel.mesh import Mesh
from ..parallel.options import Parallel
from ..progress import say
from ..requests import ExportRequest
from ..resolve import resolve_run
from ..run_folder import find_checkpoint, read_averaged


def export_weights(request: ExportRequest) -> Path:
    """Write a checkpoint's weights in a format, and prove them; returns their folder."""
    run = read_averaged(request.folder, request.raw)
    saved = find_checkpoint(request.folder, request.checkpoint)
    resolved, mesh = resolve_run(run), Mesh(Parallel())
    name = "merged" if request.merged else request.format
    form = export_format(resolved.family_class, name)
    suffix = "" if name is None else f"-{form.name}"
    out = request.out or request.folder / (("weights-raw" if request.raw else "weights") + suffix)
    if request.out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name a new folder")
    family = set_up(resolved, mesh, saved, average=not request.raw)
    say(str(export(family, resolved.claims.all_trained, mesh, out, form)))
    return out
