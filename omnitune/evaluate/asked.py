"""What `omnitune evaluate` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import UserError

NEED_DATA = ("loss", "psnr", "kid")
METRICS = (*NEED_DATA, "text_image", "motion")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to measure; the words of the command."""

    folder: Path
    """Of a run."""
    data: Path | None = None
    """Captioned items that were not trained on; absent: the run's own prompts."""
    fit: Sequence[Path] = ()
    """Folders of captioned pictures that the text-image scorer is fitted on."""
    metrics: str | None = None
    """Names with commas between them; absent: all that apply."""
    samples: int | None = None
    """How many are generated; absent: one for each caption."""
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    """Of the first sample; absent, like those above it: as the run's validation says."""
    checkpoint: int | None = None
    """A step; absent: the newest."""
    base: bool = False
    """The model before training."""
    raw: bool = False
    """The weights themselves where an average is kept."""
    features: str = "efficientnet_lite0"
    lpips: Path | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UserError(f"--samples: {self.samples} is not 1 or more")
        for name in self.names:
            if name not in METRICS:
                raise UserError(f"--metrics: {name!r} is not one of {', '.join(METRICS)}")

    @property
    def names(self) -> list[str]:
        """Of the metrics."""
        return list(METRICS) if self.metrics is None else self.metrics.split(",")

    @property
    def has_clip(self) -> bool:
        return self.features.startswith("clip:")

    def check_used(self, metrics: Sequence[str]) -> None:
        """Raise UserError for a file or folder that none of the metrics reads."""
        if self.fit and (self.has_clip or "text_image" not in metrics):
            reason = "CLIP needs no fit" if self.has_clip else "text_image is not measured"
            folders = ", ".join(map(str, self.fit))
            raise UserError(f"--fit: {folders} has no effect, {reason}; leave it out")
        if self.lpips is not None and "psnr" not in metrics:
            raise UserError(
                f"--lpips: {self.lpips} has no effect, it measures reconstructions; add psnr to --metrics"
            )
