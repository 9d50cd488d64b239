"""What is generated: options, requests of the kinds of models, and files of samples."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from .data.sizes import Bucket
from .errors import Mistakes, UserError
from .files import write_json, write_text
from .options import check_ranges, option

if TYPE_CHECKING:
    from .data.media import Pixels

LISTS = {"first_frame": "images", "last_frame": "last_images"}
"""Media that have an option of their own; all others are under `media`."""
Called = Callable[[str], str]
"""Spells an option for the user."""
IN_YAML: Called = "validation.{}".format


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
    media: dict[str, list[Path]] = field(default_factory=dict)
    """What else conditions are given, by name: `{control: [a.mp4, b.mp4]}`, one for each prompt, cut to the
    size."""
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
        positive = "[1, inf)"
        check_ranges(self, every=positive, steps=positive, fps="(0, inf)", max_tokens=positive)
        if not 0 <= self.seed < 2**63:  # torch's generators take 64 bits; samples count up from it
            raise ValueError(f"seed must be from 0 to 2**63 - 1, not {self.seed}")
        if not isfinite(self.guidance):  # the command line does not pass the checks of YAML
            raise ValueError(f"guidance must be a finite number, not {self.guidance}")
        if twice := LISTS.keys() & self.media.keys():
            raise ValueError(f"media.{min(twice)} is stated as {LISTS[min(twice)]}; move it there")
        for name, paths in self.media_files.items():
            if (number := len(paths)) != (asked := len(self.prompts)):
                raise ValueError(f"{option_of(name)}: {number} for {asked} prompts; give one for each")

    @property
    def media_files(self) -> dict[str, Sequence[Path]]:
        """Medium -> a file for each prompt; media that are not given are left out."""
        stated = {**{medium: getattr(self, name) for medium, name in LISTS.items()}, **self.media}
        return {medium: paths for medium, paths in stated.items() if paths}


def option_of(medium: str) -> str:
    """The option of `Validation` that lists a medium's files."""
    return LISTS.get(medium, f"media.{medium}")


ONE_EACH = {"prompts": "prompt", "images": "image", "last_images": "last-image"}
"""Lists of `Validation` that the command line takes one by one."""


def in_words(text: str) -> str:
    """An option, or a message that begins with one, as the command line spells it."""
    option, colon, rest = text.partition(":")
    if option.startswith("media."):
        return f"--media {option.removeprefix('media.')}{colon}{rest}"
    name, space, more = option.partition(" ")
    word = ONE_EACH.get(name, name.replace("_", "-"))
    return f"--{word}{space}{more}{colon}{rest}"


def overridden(options: Validation, given: Mapping[str, Any]) -> Validation:
    """Replace a run's sampling options by those of the request that are not None."""
    try:
        return replace(options, **{k: v for k, v in given.items() if v is not None})
    except ValueError as error:
        raise UserError(in_words(str(error))) from None


@dataclass(frozen=True)
class Medium:
    """Something that samples bring for a condition: a text, a picture, a clip, a sound."""

    name: str
    """As stages call it: `caption`, `pixels`, `first_frame`, `control`."""
    training: bool = True
    """Whether the data must bring it; else the condition makes it of something that it also declares."""
    sampling: Literal["required", "optional", "never"] = "required"
    """Whether a sample that is generated has a file of it."""
    clips_only: bool = False
    """Whether a picture has none: it would be its own first frame."""

    def __post_init__(self) -> None:
        needs = ("required", "optional", "never")
        if not self.name.isidentifier() or self.sampling not in needs:
            raise UserError(
                f"conditions: a medium is called {self.name!r} with sampling={self.sampling!r}; give it a "
                f"name of letters, digits and _, and sampling of {', '.join(needs)}"
            )


class Request(ABC):
    """One sample to generate, as a kind of model takes it."""

    unread: ClassVar[Sequence[str]]
    """Options of `Validation` that say nothing to this kind of model."""
    reason: ClassVar[str]
    """Why they do not."""

    @classmethod
    @abstractmethod
    def of(cls, options: Validation, bucket: Bucket | None) -> list[Self]:
        """The samples that options ask for, in a size where samples have one."""

    @classmethod
    def check(cls, options: Validation, media: Sequence[Medium], called: Called = IN_YAML) -> list[UserError]:
        """What a model cannot make of options."""
        defaults = Validation()
        unused = [name for name in cls.unread if getattr(options, name) != getattr(defaults, name)]
        reason = f"has no effect, {cls.reason}; remove it"
        return [UserError(f"{called(name)}: {reason}") for name in unused]

    @abstractmethod
    def write(self, path: Path, result: Any) -> Path:
        """Write a result to a path that lacks its suffix; returns the file."""

    @abstractmethod
    def describe(self, result: Any) -> dict[str, Any]:
        """What samples.json says of the sample."""


@dataclass(frozen=True)
class Sampling(Request):
    """A picture or a clip to generate: one prompt, its size and its seed.

    Conditions fill in the last three fields, by `Condition.sampling`.
    """

    unread = ("max_tokens",)
    reason = "the model generates pixels"

    prompt: str
    negative_prompt: str
    bucket: Bucket
    steps: int
    guidance: float
    seed: int
    fps: float = 16.0
    media: Mapping[str, "Pixels"] = field(default_factory=dict)
    """What conditions are given, in the bucket's size: (T, H, W, 3) in uint8, T = 1 for a picture."""
    pipeline: Any = None
    """The pipeline class that generates; None: the family's."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """Of the pipeline's call, over those of the family."""
    wrappers: Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]] = ()
    """Each takes the forward of a core network and returns what the pipeline calls in its place."""

    @classmethod
    def of(cls, options: Validation, bucket: Bucket | None) -> list[Self]:
        assert bucket is not None
        return [
            cls.one(options, prompt, bucket, options.seed, load_media(options, i, bucket))
            for i, prompt in enumerate(options.prompts)
        ]

    @classmethod
    def one(
        cls, options: Validation, prompt: str, bucket: Bucket, seed: int, media: Mapping[str, "Pixels"]
    ) -> Self:
        """A sample of a prompt, the rest as options say it."""
        negative, fps = options.negative_prompt, options.fps
        return cls(prompt, negative, bucket, options.steps, options.guidance, seed, fps, media)

    @classmethod
    def check(cls, options: Validation, media: Sequence[Medium], called: Called = IN_YAML) -> list[UserError]:
        known = {medium.name: medium.sampling for medium in media if medium.sampling != "never"}
        found, given = super().check(options, media, called), options.media_files
        for name in sorted(given.keys() - known.keys()):
            out = f"train it with a condition that takes {name}, or leave them out"
            found.append(UserError(f"{called(option_of(name))}: the model is not given them; {out}"))
        for name, need in known.items():
            if options.prompts and need == "required" and name not in given:
                lack = f"every sample needs a {name}; give one a prompt"
                found.append(UserError(f"{called(option_of(name))}: {lack}"))
        return found

    def write(self, path: Path, result: Any) -> Path:
        from .data import media

        if len(result) > 1:
            path = path.with_suffix(".mp4")
            media.write_video(path, result.numpy(), self.fps)
        else:
            path = path.with_suffix(".png")
            media.write_image(path, result[0].numpy())
        return path

    def describe(self, result: Any) -> dict[str, Any]:
        return {
            "prompt": self.prompt, "seed": self.seed, "size": str(self.bucket), "guidance": self.guidance,
            "steps": self.steps,
        }  # fmt: skip


@dataclass(frozen=True)
class Question(Request):
    """What to answer, and about which picture."""

    unread = ("size", "last_images", "media", "negative_prompt", "steps", "guidance", "seed", "fps")
    reason = "the model answers in text"

    prompt: str
    image: Path | None = None
    max_tokens: int = 64

    @classmethod
    def of(cls, options: Validation, bucket: Bucket | None) -> list[Self]:
        images: list[Path | None] = [*options.images] or [None] * len(options.prompts)
        pairs = zip(options.prompts, images, strict=True)
        return [cls(prompt, image, options.max_tokens) for prompt, image in pairs]

    def write(self, path: Path, result: Any) -> Path:
        path = path.with_suffix(".txt")
        write_text(path, f"{result}\n")
        return path

    def describe(self, result: Any) -> dict[str, Any]:
        image = None if self.image is None else str(self.image)
        return {"prompt": self.prompt, "image": image, "answer": result}


def parse_bucket(text: str, where: str) -> Bucket:
    parts = text.split("x")
    if not all(p.isascii() and p.isdigit() and int(p) for p in parts) or len(parts) not in (2, 3):
        raise UserError(f"{where}: {text!r} is not a size; write HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH")
    numbers = [int(p) for p in parts]
    return Bucket(*numbers) if len(numbers) == 3 else Bucket(1, *numbers)


def check_files(options: Validation, mistakes: Mistakes, called: Called = IN_YAML) -> None:
    """Note files that are not on this machine, or are no picture or clip."""
    from .data import media

    for name, paths in options.media_files.items():
        where = called(option_of(name))
        for path in paths:
            if not path.is_file():
                mistakes.errors.append(UserError(f"{where}: {path} is not there; correct the path"))
                continue
            try:
                media.probe(path)
            except UserError as error:
                mistakes.errors.append(UserError(f"{where}: {path}: {error}"))


def load_media(options: Validation, i: int, bucket: Bucket) -> dict[str, "Pixels"]:
    """What sample i is given, in the size of a bucket: (T, H, W, 3) each, T = 1 for a picture."""
    from .data.captions.crops import covering_frames

    return {name: covering_frames(paths[i], bucket) for name, paths in options.media_files.items()}


def write_samples(folder: Path, requests: Sequence[Request], results: Sequence[Any]) -> list[Path]:
    """Write pictures as png, clips as mp4 and answers as txt, and beside them what was asked for.

    Samples of an earlier call go; other files of the folder stay.
    """
    _remove_samples(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, described = [], []
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        paths.append(request.write(folder / f"{i:03d}", result))
        described.append({"file": paths[-1].name, **request.describe(result)})
    write_json(folder / "samples.json", described)
    return paths


def _remove_samples(folder: Path) -> None:
    """Delete what `samples.json` lists: there may be fewer now, or pictures in the place of clips."""
    listed = folder / "samples.json"
    if listed.is_file():
        for sample in json.loads(listed.read_text()):
            (folder / Path(sample["file"]).name).unlink(missing_ok=True)
        listed.unlink()
