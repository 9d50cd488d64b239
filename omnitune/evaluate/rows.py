"""Results as rows of the table."""

import math
from collections.abc import Sequence

import numpy as np

from ..objectives.held_out import HeldOutLoss
from ..objectives.token_loss import TokenLoss
from .distances import Distance, Motion
from .table import Measure
from .text_image import Share


def of_loss(found: HeldOutLoss) -> list[Measure]:
    """The mean, and a row for each noise level where the objective has such."""
    name, count = "held-out loss", len(found.items)
    levels = [level for level in found.quantiles if not math.isnan(level.u)]
    return [
        Measure(name, found.mean, found.standard_error, "standard error", count),
        *(
            Measure(f"{name} (u = {one.u:.3f})", one.mean, one.standard_error, "standard error", count)
            for one in levels
        ),
    ]


def of_tokens(found: TokenLoss) -> Measure:
    return Measure("held-out loss", found.mean, found.standard_error, "standard error", len(found.items))


def over_items(name: str, values: Sequence[float]) -> list[Measure]:
    """The mean, if there is something to average."""
    if not values:
        return []
    return [Measure(name, float(np.mean(values)), float(np.std(values)), "deviation over items", len(values))]


def of_distance(name: str, found: Distance, network: str) -> Measure:
    return Measure(
        name, found.mean, found.std, f"deviation over subsets of {found.subset_size}", found.num_fake,
        found.num_real, network=network,
    )  # fmt: skip


def of_share(
    name: str, found: Share, reference: Share | None, chance: float | None, network: str = ""
) -> Measure:
    real = None if reference is None else reference.value
    return Measure(
        name, found.value, found.standard_error, "standard error", found.count, reference=real,
        chance=chance, network=network,
    )  # fmt: skip


def of_motion(made: Motion, real: Motion | None) -> list[Measure]:
    rows = (
        ("motion (levels)", "mean", "std"),
        ("flicker (levels)", "flicker", None),
        ("static clips", "static", None),
    )
    return [
        Measure(
            name,
            getattr(made, value),
            getattr(made, spread) if spread else None,
            "deviation over clips" if spread else "",
            made.num_clips,
            reference=None if real is None else getattr(real, value),
        )
        for name, value, spread in rows
    ]
