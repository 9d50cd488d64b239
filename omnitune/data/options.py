"""What is trained on, as a run states it."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from ..types import ByName, option
from .buckets import Buckets
from .chat_options import ChatOptions
from .conversations import ConversationSource
from .sources import Source
from .views import Clips


@option
class Data(Clips):
    """Captioned pictures and clips."""

    name: Literal["captions"] = "captions"

    sources: list[Annotated[Source, ByName("folder")]]
    """Where captioned pictures and clips lie; all of them are mixed."""
    buckets: Buckets
    """Sizes that samples are brought to."""
    batch_size: int = 1
    """Samples the optimizer sees in a step, over all devices and micro-batches."""
    cache: Path | None = Path(".cache")
    """Folder of encoded latents and texts, shared between runs; null: encode in every step."""
    variants: int = 1
    """How many random windows and crops of a sample are cached; training draws one of them each time."""
    num_workers: int | None = None
    """Processes that read ahead; absent: none when all stages are cached, else 2, or 1 on one core."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "variants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {self.num_workers}")
        if not self.sources:
            raise ValueError("sources is empty; name at least one folder")


@option
class Conversations(ChatOptions):
    """Conversations about pictures and clips, as vision-language models are trained on."""

    name: Literal["conversations"] = "conversations"
    sources: list[ConversationSource]
    """Where they lie; all of them are mixed."""
    packing: bool = False
    """Put several conversations into one row, where the model can; none sees another."""
    group_by_length: bool = False
    """Batches of rows of about one length, which pads less and mixes less."""
    batch_size: int = 1
    """Rows the optimizer sees in a step, over all devices and micro-batches."""
    cache: Path | None = Path(".cache")
    """Folder of what frozen towers give, shared between runs; null: run them in every step."""
    num_workers: int | None = None
    """Processes that read ahead; absent: none when all stages are cached, else 2, or 1 on one core."""

    variants: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {self.batch_size}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {self.num_workers}")
        if not self.sources:
            raise ValueError("sources is empty; name at least one file")

    @property
    def drawn(self) -> bool:
        """Whether what is shown of an item is drawn by chance."""
        return False
