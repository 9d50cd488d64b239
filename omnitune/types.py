"""The few types that every other module shares."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, dataclass_transform, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from .random import Draw

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

Batch = dict[str, Any]
"""Collated rows: tensors lead with the batch axis; a ragged field is a list with one entry a row."""

Streams = dict[str, "Tensor"]
"""What a denoiser reads and predicts, by name: (B, C, [T,] H, W) each."""


class UserError(ValueError):
    """A mistake in what the user gave: the command prints the message alone and exits with 2."""


class MachineError(RuntimeError):
    """The machine failed (disk full, out of memory, a rank lost): message alone, exit code 3."""


class Stopped(Exception):
    """A signal asked the run to stop, and a complete checkpoint is saved: exit code 75."""


ON_EVERY_RANK = "every rank raises this"


def shared(error: E) -> E:
    """Note on an error that every rank raises it: the main rank alone tells the user."""
    if not is_shared(error):
        error.add_note(ON_EVERY_RANK)
    return error


def is_shared(error: BaseException) -> bool:
    return ON_EVERY_RANK in getattr(error, "__notes__", ())


class Mistakes:
    """What the user got wrong in parts that do not depend on each other, told in one error."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a UserError and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def raise_all(self) -> None:
        """Raise one UserError of all lines, if there are any."""
        if not self.errors:
            return
        error = UserError("\n".join(map(str, self.errors)))
        raise shared(error) if all(map(is_shared, self.errors)) else error


@dataclass_transform(frozen_default=True, kw_only_default=True)
def option(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that YAML can spell: unknown keys, NaN and infinity are errors."""
    config = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}
    cls.__pydantic_config__ = config  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


@dataclass(frozen=True)
class ByName:
    """Annotates a union of options: `name` tells the member, a mapping without one is the default.

    As of `option`, pydantic reads it; its core schemas are plain dicts, so nothing of it is imported here.
    """

    default: str

    def __get_pydantic_core_schema__(self, union: Any, schema_of: Callable[[Any], Any]) -> dict[str, Any]:
        members = {member.name: schema_of(member) for member in get_args(union)}
        return {"type": "tagged-union", "choices": members, "discriminator": self.tell}

    def tell(self, value: Any) -> str:
        """Name the member that a mapping, or an instance, is of."""
        return str(value.get("name", self.default) if isinstance(value, dict) else value.name)


@dataclass(frozen=True, slots=True)
class Item:
    """One captioned picture or clip of a source, as found on disk and probed; nothing of it is decoded."""

    id: str
    """Stable name within the data: source path and file name, independent of where the source lies."""
    path: Path
    kind: Literal["image", "video"]
    caption: str
    width: int
    """Pixels as shown, that is after rotation metadata."""
    height: int
    num_frames: int
    """1 for an image."""
    fps: float
    """Frames per second; 0 for an image."""
    where: str
    """Where the item is stated (`clips/metadata.jsonl:12`), for messages."""
    times: tuple[float, ...] = ()
    """Seconds from the first frame to each, for a clip of variable rate; else frame k is at k / fps."""
    image: Path | None = None
    """Picture that image-to-video training is conditioned on, if another than the clip's first frame."""


@dataclass(frozen=True)
class Limits:
    """Which sizes a family takes: height and width in multiples of `spatial`, frames k * `temporal` + 1."""

    spatial: int
    temporal: int
    least_frames: int = 1
    most_frames: int | None = None
    """1 where a family takes pictures alone."""
    largest: tuple[int, int] | None = None
    """The most of height and of width, where positions reach no further."""
    one_size: bool = False
    """Whether a run trains at one size alone, where positions are learned."""

    @property
    def smallest(self) -> str:
        side = self.spatial
        return f"{side}x{side}" if self.most_frames == 1 else f"{self.least_frames}x{side}x{side}"

    @property
    def sides_rule(self) -> str:
        most = f" up to {self.largest[0]}x{self.largest[1]}" if self.largest else ""
        return f"multiples of {self.spatial}{most}"

    @property
    def rule(self) -> str:
        """In words."""
        sides = f"height and width {self.sides_rule}{' (one size a run)' if self.one_size else ''}"
        if self.most_frames == 1:
            return f"{sides}, pictures alone"
        least = f", at least {self.least_frames}" if self.least_frames > 1 else ""
        most = f", at most {self.most_frames}" if self.most_frames else ""
        return f"{sides}, frames {self.temporal} * k + 1{least}{most}"


@dataclass(frozen=True, order=True)
class Bucket:
    """The size of a training sample in pixels; every global batch holds samples of one bucket."""

    frames: int
    height: int
    width: int

    @property
    def size(self) -> int:
        """Pixels of all frames."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Stage:
    """One encoder call: reads `needs` from the batch and adds `gives`.

    A stage is cacheable exactly if every parameter under `uses` is frozen, everything it `needs` is
    cached (or comes from the data) and it `draws` nothing; that is derived from the rules, never configured.
    """

    name: str
    uses: tuple[str, ...]
    """Parameter prefixes (`text_encoder`, `model.vision_tower`), not whole components."""
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    run: Callable[[Batch, "Draw"], Batch]
    draws: tuple[str, ...] = ()
    """Purposes of the random draws it makes."""
    ragged: tuple[str, ...] = ()
    """Those of `gives` that differ in shape from row to row and stay lists."""
    version: int = 0
    """Raised when its code comes to give something else for the same input: part of the cache key."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings that change the output (a text length): part of the cache key."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not averaged yet, so that ranks and micro-batches of unequal size weigh correctly."""

    totals: Mapping[str, "Tensor"]
    """Scalar sums by unit (`samples`, `tokens`); the trainer divides each by the global count of its unit."""
    metrics: Mapping[str, "Tensor"] = field(default_factory=dict)
    """Scalar sums over rows, averaged over the global batch for the log."""


MEDIA = ("pixels", "first_frame", "last_frame", "media")
"""What stages may need of an item's files: (3, T, H, W) in [-1, 1], T = 1 for a single frame of it; `media`
is what a conversation shows, as the model's processor gives it."""


def split_stages(stages: list[Stage], trainable: set[str]) -> tuple[list[Stage], list[Stage]]:
    """Split stages into (cacheable, live), given the names of trainable parameters.

    Downstream of a live output is live too. If one stage reads files anew all that read files do, for a
    sample is shown through one window and one crop.
    """
    live_keys: set[str] = set()
    for stage in stages:
        trains = any(name == use or name.startswith(use + ".") for use in stage.uses for name in trainable)
        if trains or stage.draws:
            live_keys.update(stage.gives, MEDIA if set(stage.needs) & set(MEDIA) else ())
    cacheable: list[Stage] = []
    live: list[Stage] = []
    for stage in stages:
        if stage.draws or live_keys.intersection((*stage.needs, *stage.gives)):
            live.append(stage)
            live_keys.update(stage.gives)
        else:
            cacheable.append(stage)
    return cacheable, live
