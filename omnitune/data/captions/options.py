"""Captioned pictures and clips, as a run states them."""

from pathlib import Path
from typing import Annotated, Literal

from ...options import ByName, option
from ..buckets import Buckets
from .crops import Clips
from .sources import Source


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
