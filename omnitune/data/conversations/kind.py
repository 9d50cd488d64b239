"""Conversations: how a run states them, and what they are for its model: tokens of its own template."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from ...errors import Mistakes
from ...files import Hashes
from ...options import NOT_LEARNED, ByName, check_ranges, option
from ..dataset import Index
from ..sizes import Bucket, TakesSizes
from ..sources import Source
from .options import ChatOptions
from .rows import ConversationDataset, ConversationIndex, make_rows
from .scan import scan
from .sources import ConversationSource
from .tokens import Tokens

if TYPE_CHECKING:
    from ...families.base import Family, Responder


class ConversationData:
    """Conversations about pictures and clips."""

    sizes: Sequence[Bucket] | None = None
    media = brings = ConversationDataset.media

    def __init__(
        self, data: "Conversations", family: "Responder", seed: int, mistakes: Mistakes, folder: Path
    ):
        self.data, self.family, self.seed, self.folder = data, family, seed, folder
        self.notes: list[str] = []
        with mistakes.noted():
            family.check_length(data.max_length)
        if data.packing:
            with mistakes.noted():
                family.check_packing()

    def fit(self, family: TakesSizes) -> None:
        """Have questions asked as they are learned; no weights depend on the sizes of pictures."""
        cast("Responder", family).asked_as = self.data

    def index(
        self, hashes: Hashes, mistakes: Mistakes, look: Callable[[Index], None] | None = None
    ) -> ConversationIndex:
        with mistakes.noted():
            found = scan(self.data.sources, Path.cwd(), hashes)
        with mistakes.noted():
            tokens = self.tokens
        mistakes.raise_all()
        index = make_rows(
            found.items, tokens, hashes, notes=found.notes, where="data.sources",
            packing=self.data.max_length if self.data.packing else None, by_length=self.data.group_by_length,
        )  # fmt: skip
        if look is not None:
            look(index)
            mistakes.raise_all()
        return index

    @cached_property
    def tokens(self) -> Tokens:
        """Conversations as the model's own processor encodes them."""
        return Tokens(self.family.conversation_encoder(self.data), self.folder)

    def dataset(self, index: Index) -> ConversationDataset:
        assert isinstance(index, ConversationIndex), type(index)
        return ConversationDataset(index, self.tokens, self.seed)


@option
class Conversations(ChatOptions):
    """Conversations about pictures and clips, as vision-language models are trained on."""

    name: Literal["conversations"] = "conversations"
    sources: Annotated[list[Annotated[ConversationSource, ByName("conversations", Source)]], NOT_LEARNED]
    """Where they lie; all of them are mixed."""
    packing: bool = False
    """Put several conversations into one row, where the model can; none sees another."""
    group_by_length: bool = False
    """Batches of rows of about one length, which pads less and mixes less."""
    batch_size: int = 1
    """Rows the optimizer sees in a step, over all devices and micro-batches."""
    cache: Annotated[Path | None, NOT_LEARNED] = Path(".cache")
    """Folder of what frozen towers give, shared between runs; null: run them in every step."""
    num_workers: Annotated[int | None, NOT_LEARNED] = None
    """Processes that read ahead; absent: none when all stages are cached, else 2, or 1 on one core."""

    variants: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, batch_size="[1, inf)", num_workers="[0, inf)")
        if not self.sources:
            raise ValueError("sources is empty; name at least one file")

    @property
    def drawn(self) -> bool:
        """Whether what is shown of an item is drawn by chance."""
        return False

    def scan(self, memo: Hashes) -> None:
        """Find the mistakes in the data alone, where nothing is known of the model."""
        scan(self.sources, Path.cwd(), memo)

    def bind(self, family: "Family", seed: int, folder: Path, mistakes: Mistakes) -> ConversationData:
        """Hold the data against a model; `folder` is where facts about files are remembered."""
        # A run whose family is trained on something else is refused before.
        return ConversationData(self, cast("Responder", family), seed, mistakes, folder)
