"""What the data of a run are to everything that trains on them, of whatever kind they are.

`RunData` makes an `Index`, of which a `Dataset` gives the samples. Captions and conversations are
two kinds, in the folders of these names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

from ..batch import Batch
from ..errors import Mistakes, UserError
from ..files import Hashes
from ..random import Draw
from .sizes import AnyBucket, Bucket, TakesSizes
from .view import View

if TYPE_CHECKING:
    from torch import Tensor


class Inputs(TypedDict):
    """What a sample brings before any stage runs; conditions edit it."""

    index: int | None
    """Into the index; None for a row that is of no item."""
    caption: str
    view: View | None
    """What of an item's media is shown; None where they are shown whole."""


class EditsInputs(Protocol):
    """A condition, as far as data know it."""

    @property
    def name(self) -> str: ...
    def inputs(self, inputs: Inputs, draw: Draw) -> Inputs: ...
    def variants(self, inputs: Inputs) -> list[Inputs]: ...


class IndexItem(Protocol):
    """What the index says of an item of any kind."""

    @property
    def id(self) -> str:
        """Stable name within the data."""

    @property
    def caption(self) -> str:
        """Its text."""


class Index(Protocol):
    """The items of a run in the order of the run, in columns: a million take under 200 MB.

    The main rank makes it and sends it to the others, so it has to be picklable.
    """

    @property
    def items(self) -> Sequence[IndexItem]:
        """Made from the columns each time one is asked for."""

    @property
    def buckets(self) -> Sequence[AnyBucket]:
        """Of each item."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know, one line each."""

    @property
    def by_bucket(self) -> Mapping[AnyBucket, Sequence[int]]:
        """The places of the items of each bucket, in order."""

    @property
    def largest(self) -> Bucket | None:
        """The largest bucket; None where samples have no size in pixels."""

    def fingerprints(self) -> dict[str, str]:
        """Item id -> hash of all that is learned of it."""

    def renamed(self, places: Sequence[int], ids: Sequence[str]) -> "Index":
        """The items at these places, in this order, each under another id."""

    def caption_notes(self, cut_captions: Callable[[Sequence[str]], list[int]]) -> list[str]:
        """Name the items of which a family does not read the whole caption."""


class Dataset(Protocol):
    """Gives the samples of an index to training."""

    seed: int

    @property
    def index(self) -> Index: ...

    @property
    def media(self) -> Collection[str]:
        """Names that `load` reads from files: what any sample has, and what sources say they bring."""

    @property
    def ragged(self) -> Sequence[str]:
        """What rows bring that differs in shape from row to row."""

    def inputs(self, i: int, variant: int | str = 0) -> Inputs:
        """Say what a sample brings; `variant` keys the draws of its window and crop."""

    def variant(self, position: int) -> int:
        """Draw which of the cached variants the row at a position of the run sees."""

    def input_keys(self, inputs: Inputs) -> dict[str, str]:
        """Name -> a hash of everything that decides it, for the caption and each medium the sample has."""

    def load(self, name: str, inputs: Inputs) -> Tensor | list[dict[str, Tensor]]:
        """Read and decode a medium: (3, T, H, W) in [-1, 1], or what a conversation shows."""

    def row_metadata(self, inputs: Inputs) -> Batch:
        """What every row carries, whatever stages there are."""

    def units(self, i: int) -> Mapping[str, int]:
        """What an objective counts the units of an item by."""

    def entries(self) -> Iterator[tuple[Inputs, AnyBucket]]:
        """Every sample that the cache has to hold: each variant of each item."""

    def shared_entries(self, needs: Sequence[str]) -> list[Inputs]:
        """What the cache holds beside the items, for a stage that needs these."""

    def padding_row(self, rows: Sequence[Inputs]) -> Inputs | None:
        """Give a row of weight 0 that a micro-batch needs beside its own, so that all ranks run alike."""

    def decode_errors(self, i: int) -> list[UserError]:
        """Decode all that training would read of an item, and say why it cannot."""


class RunData(Protocol):
    """The data of a run, held against its model."""

    notes: list[str]
    sizes: Sequence[Bucket] | None
    """The buckets in pixels; None where samples have none, or they were stated wrong."""

    @property
    def media(self) -> Sequence[str]:
        """Those of its datasets, known from the options before any source is read."""

    @property
    def brings(self) -> Sequence[str]:
        """All that stages and conditions may need of a sample: its media, and its caption if it has one."""

    def fit(self, family: TakesSizes) -> None:
        """Fit another copy of the family to the run's sizes."""

    def index(self, hashes: Hashes, mistakes: Mistakes, look: Callable[[Index], None] | None = None) -> Index:
        """Find, check and hash the items; raises UserError with every mistake before anything is hashed.

        `look` sees the items that are right, though others are wrong, and may add mistakes of its own.
        """

    def dataset(self, index: Index) -> Dataset:
        """Give the samples of an index of this data."""
