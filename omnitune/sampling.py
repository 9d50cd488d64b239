"""What is generated: options, requests, and files of samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import buckets
from .data.sizes import Bucket
from .errors import Mistakes, UserError
from .files import write_json, write_text
from .options import option

if TYPE_CHECKING:
    from .families.base import Family, Question, Sampling


@option
class Validation:
    """What is generated while training; it changes nothing of what is learned."""

    every: int | None = None
    """Steps between samples; absent: before the first step and after the last."""
    prompts: list[str] = field(default_factory=list)
    """One sample each."""
    images: list[Path] = field(default_factory=list)
    """One for each prompt: the first frame of each sample, for image-to-video, cut to the size; or what each
    question is about, whole."""
    last_images: list[Path] = field(default_factory=list)
    """The last frame of each sample, for models that are given it."""
    negative_prompt: str = ""
    size: str | None = None
    """`480x832` for pictures, `49x480x832` for clips; absent: the largest bucket of the data."""
    steps: int = 30
    """Denoising steps."""
    guidance: float = 5.0
    """Classifier-free guidance scale; 1 switches it off."""
    seed: int = 0
    """Of the starting noise, the same at every step so that samples can be compared."""
    fps: float = 16.0
    """Frames per second of the written clips."""
    max_tokens: int = 64
    """Most tokens of an answer, of models that answer in text."""

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be 1 or more, not {self.every}")
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, not {self.steps}")
        if not isfinite(self.guidance):  # the command line does not pass the checks of YAML
            raise ValueError(f"guidance must be a finite number, not {self.guidance}")
        if self.fps <= 0:
            raise ValueError(f"fps must be above 0, not {self.fps}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more, not {self.max_tokens}")
        for name in ("images", "last_images"):
            if (number := len(getattr(self, name))) not in (0, len(self.prompts)):
                raise ValueError(f"{name}: {number} for {len(self.prompts)} prompts; give one for each")


def overridden(options: Validation, given: Mapping[str, Any]) -> Validation:
    """Replace a run's sampling options by those of the request that are not None."""
    try:
        return replace(options, **{k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        text = str(error).replace("last_images", "last-image").replace("images", "image").replace("_", "-")
        raise UserError(f"--{text}") from None


def parse_bucket(text: str, where: str) -> Bucket:
    parts = text.split("x")
    if not all(p.isascii() and p.isdigit() and int(p) for p in parts) or len(parts) not in (2, 3):
        raise UserError(f"{where}: {text!r} is not a size; write HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH")
    numbers = [int(p) for p in parts]
    return Bucket(*numbers) if len(numbers) == 3 else Bucket(1, *numbers)


def wanted(options: Validation, bucket: Bucket | None) -> "list[Any]":
    """What to generate in a size, or to answer."""
    from .families.base import Question, Sampling

    if bucket is None:
        images: list[Path | None] = [*options.images] or [None] * len(options.prompts)
        pairs = zip(options.prompts, images, strict=True)
        return [Question(prompt, image, options.max_tokens) for prompt, image in pairs]
    return [
        Sampling(
            prompt, options.negative_prompt, bucket, options.steps, options.guidance, options.seed,
            options.fps, given_frames(options, i, bucket),
        )
        for i, prompt in enumerate(options.prompts)
    ]  # fmt: skip


def given_frames(options: Validation, i: int, bucket: Bucket) -> dict[str, Any]:
    """The frames that sample i is given, (H, W, 3) each."""
    from .data.captions import crops as views

    files = {"first_frame": options.images, "last_frame": options.last_images}
    return {name: views.covering_picture(paths[i], bucket)[0] for name, paths in files.items() if paths}


OPTIONS = {"images": "validation.images", "last_images": "validation.last_images"}

FOR_PIXELS = ("size", "last_images", "negative_prompt", "steps", "guidance", "seed", "fps")
"""Options that models which answer in text do not read."""


def check_samples(
    options: Validation, family: "Family", mistakes: Mistakes, told: Mapping[str, str] = OPTIONS
) -> None:
    """Note what a model cannot make of what is asked for; `told` has the user's words for lists."""
    with mistakes.noted():
        if family.trained_on == "conversations":
            refuse_unused(options, FOR_PIXELS, "the model answers in text")
        else:
            check_frames(options, family, told)
    with mistakes.noted():
        if family.trained_on != "conversations":
            refuse_unused(options, ("max_tokens",), "the model generates pixels")
    with mistakes.noted():
        check_pictures(options, told)


def refuse_unused(options: Validation, names: Sequence[str], why: str) -> None:
    """Raise UserError for options that were changed and have no effect."""
    defaults = Validation()
    if unused := [name for name in names if getattr(options, name) != getattr(defaults, name)]:
        raise UserError("\n".join(f"validation.{name}: has no effect, {why}; remove it" for name in unused))


def read_size(text: str, where: str, family: "Family", sizes: Sequence[Bucket] | None) -> Bucket:
    """Read a size; raises UserError for one that the model, or this run of it, does not take."""
    if family.trained_on == "conversations":
        raise UserError(f"{where}: has no effect, the model answers in text; leave it out")
    bucket, limits = parse_bucket(text, where), family.limits
    nearest = Bucket(
        buckets.nearest_frames(bucket.frames, limits),
        *buckets.nearest_sides((bucket.height, bucket.width), limits),
    )
    if nearest != bucket:
        raise UserError(f"{where}: {bucket} is not a size that {family.name} takes; the nearest is {nearest}")
    if limits.one_size and sizes and bucket not in sizes:
        raise UserError(f"{where}: {bucket}, but this run's positions are of {sizes[0]}; use that")
    return bucket


def check_frames(options: Validation, family: "Family", told: Mapping[str, str] = OPTIONS) -> None:
    """Raise UserError if samples lack frames that the model is given, or have some that it is not.

    `told` has what the user calls both lists.
    """
    if not options.prompts:
        return
    for name, key in (("first_frame", "images"), ("last_frame", "last_images")):
        given, asked = bool(getattr(options, key)), name in family.pictures
        if given and not asked:
            raise UserError(
                f"{told[key]}: the model is not given them; train it with the condition frame_conditioning, "
                "or leave them out"
            )
        if asked and not given and not family.frames_optional:
            raise UserError(f"{told[key]}: image-to-video samples need one for each prompt; name them")


def check_pictures(options: Validation, told: Mapping[str, str] = OPTIONS) -> None:
    """Raise UserError if a picture that samples are given is not on this machine."""
    for key in ("images", "last_images"):
        for path in getattr(options, key):
            if not path.is_file():
                raise UserError(f"{told[key]}: {path} is not there; correct the path")


def write_samples(folder: Path, samples: list[Any], made: list[Any], fps: float) -> list[Path]:
    """Write pictures as png, clips as mp4 and answers as txt, and beside them what was asked for.

    Samples of an earlier call go; other files of the folder stay.
    """
    _remove_samples(folder)
    if made and isinstance(made[0], str):
        return _write_answers(folder, samples, made)
    return _write_frames(folder, samples, made, fps)


def _write_answers(folder: Path, questions: "list[Question]", answers: list[str]) -> list[Path]:
    paths, described = [], []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        path = folder / f"{i:03d}.txt"
        write_text(path, answer + "\n")
        paths.append(path)
        image = None if question.image is None else str(question.image)
        described.append({"file": path.name, "prompt": question.prompt, "image": image, "answer": answer})
    write_json(folder / "samples.json", described)
    return paths


def _write_frames(folder: Path, samples: "list[Sampling]", frames: list[Any], fps: float) -> list[Path]:
    from .data import media

    paths = []
    for i, video in enumerate(frames):
        path = folder / (f"{i:03d}.mp4" if len(video) > 1 else f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(video) > 1:
            media.write_video(path, video.numpy(), fps)
        else:
            media.write_image(path, video[0].numpy())
        paths.append(path)
    described = [
        {"file": p.name, "prompt": s.prompt, "seed": s.seed, "size": str(s.bucket), "guidance": s.guidance,
         "steps": s.steps}
        for p, s in zip(paths, samples, strict=True)
    ]  # fmt: skip
    write_json(folder / "samples.json", described)
    return paths


def _remove_samples(folder: Path) -> None:
    """Delete what `samples.json` lists: there may be fewer now, or pictures in the place of clips."""
    listed = folder / "samples.json"
    if listed.is_file():
        for sample in json.loads(listed.read_text()):
            (folder / Path(sample["file"]).name).unlink(missing_ok=True)
        listed.unlink()
