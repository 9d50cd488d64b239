"""Generate with what a run has learned."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..errors import Mistakes, UserError
from ..model import set_up
from ..parallel.mesh import Mesh, Parallel
from ..resolve import resolve_run
from ..run_folder import find_checkpoint, read_run
from ..sampling import check_files, in_words, overridden, write_samples
from ..words import Word


@dataclass(frozen=True)
class SampleRequest:
    """What to generate, with which weights of a run; absent values are the run's own."""

    folder: Annotated[Path, Word("runs/NAME")]
    prompts: Annotated[Sequence[str] | None, Word("what to generate; again for more", "--prompt")] = None
    images: Annotated[
        Sequence[Path] | None, Word("its first frame, or what is asked about; one a prompt", "--image")
    ] = None
    last_images: Annotated[Sequence[Path] | None, Word("its last frame", "--last-image")] = None
    media: Annotated[
        Mapping[str, Sequence[Path]] | None, Word("what else conditions are given; one a prompt", "--media")
    ] = None
    size: Annotated[str | None, Word("480x832 or 49x480x832")] = None
    steps: Annotated[int | None, Word("denoising steps")] = None
    guidance: Annotated[float | None, Word("guidance scale")] = None
    seed: Annotated[int | None, Word("of the starting noise")] = None
    max_tokens: Annotated[int | None, Word("most tokens of an answer")] = None
    checkpoint: Annotated[int | None, Word("step of the checkpoint; the newest by default")] = None
    base: Annotated[bool, Word("the model before training")] = False
    raw: Annotated[bool, Word("raw weights where an average is kept")] = False
    out: Annotated[Path | None, Word("folder to write to")] = None


@dataclass(frozen=True)
class SampleResult:
    """What was generated: files, and uint8 frames (T, H, W, 3) or an answer for each."""

    paths: Sequence[Path]
    samples: Sequence[Any]


def sample(request: SampleRequest) -> SampleResult:
    """Generate with a run's weights and write the samples."""
    folder, run = request.folder, read_run(request.folder)
    names = ("prompts", "images", "last_images", "media", "size", "steps", "guidance", "seed", "max_tokens")
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
    out = request.out or folder / "samples" / "manual" / f"{name}-seed-{options.seed}"
    return SampleResult(write_samples(out, requests, results), results)
