"""Captioned pictures and clips, as a run states them."""

from pathlib import Path
from typing import Annotated, Literal

from ...options import NOT_LEARNED, ByName, option
from ..buckets import Buckets
from .crops import Clips
from .sources import Source


@option
class Data(Clips):
    """Captioned pictures and clips."""

    name: Literal["captions"] = "captions"

    sources: Annotated[list[Annotated[Source, ByName("folder")]], NOT_LEARNED]
    """Where captioned pictures and clips lie; all of them are mixed."""
    buckets: Buckets
    """Sizes that samples are brought to."""
    batch_size: int = 1
    """Samples the optimizer sees in a step, over all devices and micro-batches."""
    cache: Annotated[Path | None, NOT_LEARNED] = Path(".cache")
    """Folder of encoded latents and texts, shared between runs; null: encode in every step."""
    variants: int = 1
    """How many random windows and crops of a sample are cached; training draws one of them each time."""
    num_workers: Annotated[int | None, NOT_LEARNED] = None
    """Processes that read ahead; absent: none when all stages are cached, else 2, or 1 on one core."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "variants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {self.num_workers}")
        if not self.sources:
            raise ValueError("sources is empty; name at least one folder")

    @property
    def drawn(self) -> bool:
        """Whether windows or crops are drawn at random."""
        return "random" in (self.window, self.crop)
