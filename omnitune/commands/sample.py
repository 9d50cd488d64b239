"""Generate with what a run has learned."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import Mistakes, UserError
from ..model import set_up
from ..parallel.mesh import Mesh
from ..parallel.options import Parallel
from ..requests import SampleRequest
from ..resolve import resolve_run
from ..run_folder import check_free, find_checkpoint, next_free, read_averaged
from ..sampling import Validation, check_files, in_words, overridden, write_samples


@dataclass(frozen=True)
class SampleResult:
    """What was generated: files, and uint8 frames (T, H, W, 3) or an answer for each."""

    paths: Sequence[Path]
    samples: Sequence[Any]


def sample(request: SampleRequest) -> SampleResult:
    """Generate with a run's weights and write the samples."""
    check_free(request.out)
    folder, run = request.folder, read_averaged(request.folder, request.raw)
    names = {field.name for field in fields(SampleRequest)} & {field.name for field in fields(Validation)}
    options = overridden(run.validation, {name: getattr(request, name) for name in names})
    if not options.prompts:
        raise UserError(
            "--prompt: none is given, and the run's validation.prompts is empty; say what to generate"
        )
    resolved, mistakes = resolve_run(run), Mistakes()
    shape = resolved.shape
    mistakes.errors += shape.request_type.check(options, shape.media, in_words)
    check_files(options, mistakes, in_words)
    mistakes.raise_all()
    bucket = resolved.trained_bucket(folder, options.size)
    saved = None if request.base else find_checkpoint(folder, request.checkpoint)
    family = set_up(resolved, Mesh(Parallel()), saved, average=not request.raw)
    requests = family.request_type.of(options, bucket)
    results = family.sample(requests, progress=sys.stderr.isatty())
    name = "base" if saved is None else f"step-{saved.step}"
    out = request.out or next_free(folder / "samples" / "manual" / f"{name}-seed-{options.seed}")
    return SampleResult(write_samples(out, requests, results), results)
