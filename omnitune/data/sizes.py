"""Sizes of training samples, and which of them a model takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class AnyBucket(Protocol):
    """What the rows of a global batch have in common; orders and compares by value, and is hashable."""

    @property
    def size(self) -> int:
        """How much a row is, to encode few large or many small ones at once."""

    def __lt__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...


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


class TakesSizes(Protocol):
    """A model, as far as data know it."""

    def fit_sizes(self, sizes: Sequence[Bucket]) -> list[str]:
        """Fit the model to the sizes of a run; returns what the user should know of it."""
