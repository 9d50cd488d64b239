"""What `omnitune evaluate` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

FEATURES = "efficientnet_lite0"


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to measure of a run."""

    folder: Path
    """Of a run."""
    data: Path | None = None
    """Captioned items, or conversations, that were not trained on; absent: the run's own prompts."""
    fit: Sequence[Path] = ()
    """Folders of captioned pictures that the text-image scorer is fitted on."""
    metrics: str | None = None
    """Names with commas between them, or `package.module:Class`; absent: all that apply."""
    samples: int | None = None
    """How many are generated, or the first so many conversations; absent: one for each caption, or all."""
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
    features: str = FEATURES
    lpips: Path | None = None
    out: Path | None = None
    """JSON to write; absent: evaluation/STEP.json of the run."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UserError(f"--samples: {self.samples} is not 1 or more")

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

    def check_text(self) -> None:
        """Raise UserError for what has no effect on a model that answers in text."""
        given = {
            "--fit": bool(self.fit),
            "--size": self.size is not None,
            "--steps": self.steps is not None,
            "--guidance": self.guidance is not None,
            "--seed": self.seed is not None,
            "--features": self.features != FEATURES,
            "--lpips": self.lpips is not None,
        }
        if stated := [name for name, is_given in given.items() if is_given]:
            raise UserError(f"{', '.join(stated)}: no effect, the model answers in text; leave out")
