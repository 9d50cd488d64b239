"""What is done with a run after training: sample, export."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint
from ..data.sizes import Bucket
from ..errors import UserError
from ..export.weights import export, load_trained
from ..files import read_jsonl
from ..parallel.mesh import Mesh, Parallel
from ..progress import say
from ..resolve import place
from ..sampling import parse_bucket, wanted, write_samples
from . import train as session

if TYPE_CHECKING:
    from ..families.base import Family
    from ..resolve import Job
    from ..sampling import Validation


PICTURES = {"images": "--image", "last_images": "--last-image"}


def find_checkpoint(folder: Path, step: int | None) -> checkpoint.Saved:
    """The checkpoint of a step, or the newest that is whole."""
    saved = checkpoint.list_saved(folder / "checkpoints")
    if step is None:
        found, notes = checkpoint.newest(folder / "checkpoints")
        for note in notes:
            say(note)
        if found is None:
            raise UserError(f"{folder}: no complete checkpoint in it; train it first")
        return found
    there = ", ".join(str(s.step) for s in saved) or "none"
    one = next((s for s in saved if s.step == step), None)
    if one is None:
        raise UserError(f"--checkpoint: {folder} has none of step {step}; there are: {there}")
    if fault := one.fault():
        raise UserError(f"--checkpoint: {one.folder} cannot be used: {fault}; there are: {there}")
    return one


def trained(job: "Job", mesh: Mesh, saved: checkpoint.Saved | None, average: bool) -> "Family":
    """The family as a checkpoint left it; as the run found it without one."""
    from ..parallel.state import load_whole

    family, compute = job.trained_family(str(mesh.device))
    if saved is not None:
        load_trained(family, load_whole(saved.tensors, mesh), average)
    place(family, compute, mesh)
    return family


def overridden(options: "Validation", given: Mapping[str, Any]) -> "Validation":
    """A run's sampling options with those of the command line that are not None."""
    try:
        return replace(options, **{k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        text = str(error).replace("last_images", "last-image").replace("images", "image").replace("_", "-")
        raise UserError(f"--{text}") from None


def sample_run(arguments: argparse.Namespace) -> None:
    """Generate with a run's weights and write the samples."""
    folder: Path = arguments.folder
    run = session.read_run(folder)
    given = {
        "prompts": arguments.prompt, "steps": arguments.steps, "guidance": arguments.guidance,
        "seed": arguments.seed, "size": arguments.size, "images": arguments.image,
        "last_images": arguments.last_image, "max_tokens": arguments.max_tokens,
    }  # fmt: skip
    options = overridden(run.validation, given)
    if not options.prompts:
        raise UserError(
            "--prompt: none is given, and the run's validation.prompts is empty; say what to generate"
        )
    job = session.make_job(run)
    job.material.check_samples(options, PICTURES)
    bucket = sample_size(options.size, folder, job)
    saved = None if arguments.base else find_checkpoint(folder, arguments.checkpoint)
    family = trained(job, Mesh(Parallel()), saved, not arguments.raw)
    samples = wanted(options, bucket)
    frames = family.sample(samples, progress=True)
    name = "base" if saved is None else f"step-{saved.step}"
    out = arguments.out or folder / "samples" / "manual" / f"{name}-seed-{options.seed}"
    for path, one in zip(write_samples(out, samples, frames, options.fps), frames, strict=True):
        print(f"{path}: {one}" if isinstance(one, str) else path)


def sample_size(size: str | None, folder: Path, job: "Job") -> Bucket | None:
    """What is generated: a size that `--size` states, or the largest that the run trained on."""
    if size is not None:
        return job.size(size, "--size")
    if job.family_class.trained_on == "conversations":
        return None
    lines = folder / "data.jsonl"
    if not lines.is_file():
        raise UserError(f"--size: {lines} is missing, which tells the largest size of the data; state a size")
    sizes = {parse_bucket(row["bucket"], str(lines)) for row in read_jsonl(lines)}
    return max(sizes, key=lambda b: b.frames * b.height * b.width)


def export_run(folder: Path, step: int | None, raw: bool, out: Path | None, merged: bool = False) -> None:
    """Write a checkpoint's weights in the published layout."""
    run = session.read_run(folder)
    saved = find_checkpoint(folder, step)
    job, mesh = session.make_job(run), Mesh(Parallel())
    name = "weights-raw" if raw and run.ema else "weights"
    target = out or folder / (f"{name}-merged" if merged else name)
    if out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name a new folder")
    export(trained(job, mesh, saved, not raw), job.claims.ever, mesh, target, merged)
    print(target)
