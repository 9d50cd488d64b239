"""What each command is asked for: a field is an option of the command line, its `Word` the help text.

They lie apart from what they ask for, so that `--help` imports no torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from .errors import UserError
from .words import Word

FEATURES = "efficientnet_lite0"


def check_weights(base: bool, checkpoint: int | None, raw: bool) -> None:
    """Raise UserError for the model before training, of a checkpoint or with raw weights."""
    if base and (checkpoint is not None or raw):
        other = f"checkpoint {checkpoint}" if checkpoint is not None else "the raw weights"
        raise UserError(f"--base: is before training, not of {other}; give one of both")


class _OfRun:
    """What requests share that name the folder of a run: Python may state paths as texts."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, field.name), str(field.type)
            if isinstance(value, str) and "Sequence[" in hint:
                raise UserError(f"--{field.name}: {value!r} is one; give a list, [{value!r}]")
            if isinstance(value, str) and "Path" in hint:
                object.__setattr__(self, field.name, Path(value))


@dataclass(frozen=True)
class ExportRequest(_OfRun):
    """Which weights of a run to write, and where."""

    folder: Annotated[Path, Word("runs/NAME")]
    checkpoint: Annotated[int | None, Word("step of the checkpoint; the newest by default")] = None
    raw: Annotated[bool, Word("raw weights where an average is kept")] = False
    format: Annotated[str | None, Word("diffusers, peft, merged or package.module:Class")] = None
    merged: Annotated[bool, Word("the same as --format merged: adapters added to the weights")] = False
    out: Annotated[Path | None, Word("folder to write to; weights/ of the run by default")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merged and self.format not in (None, "merged"):
            raise UserError(f"--merged: is not --format {self.format}; give one of both")


@dataclass(frozen=True)
class InitRequest:
    """Which family, and which of its checkpoints."""

    family: Annotated[str, Word("its name, as `omnitune models` lists it")]
    variant: Annotated[str | None, Word("of its checkpoints, as `omnitune models` lists them")] = None


@dataclass(frozen=True)
class ReportRequest(_OfRun):
    """Which run to report on."""

    folder: Annotated[Path, Word("runs/NAME")]


@dataclass(frozen=True)
class SampleRequest(_OfRun):
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
    negative_prompt: Annotated[str | None, Word("what samples are led away from")] = None
    size: Annotated[str | None, Word("480x832 or 49x480x832")] = None
    steps: Annotated[int | None, Word("denoising steps")] = None
    guidance: Annotated[float | None, Word("guidance scale")] = None
    seed: Annotated[int | None, Word("of the starting noise")] = None
    max_tokens: Annotated[int | None, Word("most tokens of an answer")] = None
    checkpoint: Annotated[int | None, Word("step of the checkpoint; the newest by default")] = None
    base: Annotated[bool, Word("the model before training")] = False
    raw: Annotated[bool, Word("raw weights where an average is kept")] = False
    out: Annotated[Path | None, Word("new folder to write to; in samples/manual by default")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.base, self.checkpoint, self.raw)


@dataclass(frozen=True)
class EvaluateRequest(_OfRun):
    """What to measure of a run; sampling options that are absent are the run's own."""

    folder: Annotated[Path, Word("runs/NAME")]
    data: Annotated[
        Path | None, Word("what was not trained on: a folder, or a file of conversations; else its prompts")
    ] = None
    metrics: Annotated[
        str | None,
        Word("of loss,psnr,kid,text_image,motion,exact_match,rouge,module:Class; all that apply by default"),
    ] = None
    fit: Annotated[
        Sequence[Path] | None, Word("folder of captioned pictures that the text-image score learns; again")
    ] = None
    samples: Annotated[int | None, Word("how many to generate, or to read; one a caption by default")] = None
    size: Annotated[str | None, Word("480x832 or 49x480x832; the run's buckets by default")] = None
    steps: Annotated[int | None, Word("denoising steps")] = None
    guidance: Annotated[float | None, Word("guidance scale")] = None
    seed: Annotated[int | None, Word("of the first sample's starting noise")] = None
    checkpoint: Annotated[int | None, Word("step of the checkpoint; the newest by default")] = None
    base: Annotated[bool, Word("the model before training")] = False
    raw: Annotated[bool, Word("raw weights where an average is kept")] = False
    features: Annotated[str, Word("or inception:FILE or clip:FOLDER that you have")] = FEATURES
    lpips: Annotated[Path | None, Word("torchvision's AlexNet, VGG16 or SqueezeNet weights")] = None
    out: Annotated[Path | None, Word("new JSON to write; in evaluation/ of the run by default")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 1:
            raise UserError(f"--samples: {self.samples} is not 1 or more")
        check_weights(self.base, self.checkpoint, self.raw)

    def check_used(self, read: Collection[str], measured: Collection[str]) -> None:
        """Raise UserError for options that nothing which is measured reads."""
        given = {name: getattr(self, name) for name in ("fit", "size", "steps", "guidance", "seed", "lpips")}
        given["features"] = None if self.features == FEATURES else self.features
        if unused := [f"--{name}" for name, value in given.items() if value is not None and name not in read]:
            raise UserError(
                f"{', '.join(unused)}: no effect on what is measured, {', '.join(measured)}; leave out"
            )
