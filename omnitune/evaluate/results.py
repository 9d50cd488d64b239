"""The rows of a result, and how they are printed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Measure:
    """One row of the result."""

    name: str
    value: float
    spread: float | None
    spread_of: str
    """A standard error, or a deviation over what."""
    count: int
    """Of what was measured: samples, or items."""
    num_real: int | None = None
    """Of the pictures that a distance is measured to."""
    reference: float | None = None
    """The same number of the real data."""
    chance: float | None = None
    """The same number of a model that knows nothing of captions."""
    network: str = ""

    @classmethod
    def mean_of(cls, name: str, values: Sequence[float]) -> "Measure":
        """Average what was measured of each picture, clip or answer."""
        rows = torch.tensor(values, dtype=torch.float64)
        error = float(rows.std() / len(rows) ** 0.5) if len(rows) > 1 else math.nan
        return cls(name, float(rows.mean()), error, "standard error", len(rows))

    def as_json(self) -> dict[str, Any]:
        """The fields by name; JSON knows no nan."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found, and how."""

    measures: Sequence[Measure]
    settings: Mapping[str, Any]
    """How the numbers came about: run, weights, data, sizes, seeds."""
    file: Path
    """The same as JSON."""


def table(measures: Sequence[Measure]) -> list[str]:
    """Lines of text, one a measure."""
    head = ("metric", "value", "spread", "count", "real data", "chance", "network")
    cells = [head, *(_cells(row) for row in measures)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cells(row: Measure) -> tuple[str, ...]:
    has_spread = row.spread is not None and not math.isnan(row.spread)
    return (
        row.name,
        f"{row.value:.4g}",
        f"{row.spread:.2g} ({row.spread_of})" if has_spread else "",
        f"{row.count}" if row.num_real is None else f"{row.count} to {row.num_real}",
        "" if row.reference is None else f"{row.reference:.4g}",
        "" if row.chance is None else f"{row.chance:.2g}",
        row.network,
    )
