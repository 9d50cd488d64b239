"""Samples over time: a row a prompt, first and last beside the step that the slider chooses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .contents import Sample

MAX_EMBEDDED = 20_000_000
"""Characters of base64 in a page, about; steps between are left out beyond it."""

Row = tuple[str, int, int]
"""Prompt, seed, and which of the samples that share these."""


@dataclass(frozen=True)
class Grid:
    """Samples by row and step."""

    rows: Mapping[Row, Mapping[int, Sample]]
    """By step, of the steps that are shown."""
    steps: list[int]
    """Those that are shown, ascending."""
    num_steps: int
    """Those that there are."""


def embedded_size(path: Path) -> int:
    return (path.stat().st_size + 2) // 3 * 4


def chosen(sizes: Sequence[int], limit: int) -> list[int]:
    """Indices of the steps to embed: all, or the ends and as many evenly spaced ones as the limit allows."""
    num = len(sizes)
    if sum(sizes) <= limit or num <= 2:
        return list(range(num))
    for wanted in range(num - 1, 2, -1):
        spaced = [round(i * (num - 1) / (wanted - 1)) for i in range(wanted)]
        if sum(sizes[i] for i in spaced) <= limit:
            return spaced
    return [0, num - 1]


def grid(samples: Mapping[int, Sequence[Sample]], limit: int) -> Grid:
    steps = [step for step, of_step in samples.items() if of_step]
    sizes = [sum(embedded_size(s.path) for s in samples[step]) for step in steps]
    shown = [steps[i] for i in chosen(sizes, limit)]
    rows: dict[Row, dict[int, Sample]] = {}
    for step in shown:
        seen: Counter[tuple[str, int]] = Counter()
        for sample in samples[step]:
            key = (sample.prompt, sample.seed)
            rows.setdefault((*key, seen[key]), {})[step] = sample
            seen[key] += 1
    return Grid(rows, shown, len(steps))
