"""Samples over time: a row a prompt, first and last beside the step that the slider chooses."""

import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .contents import Sample
from .markup import count, extent, note, size, text

MAX_EMBEDDED = 20_000_000
"""Characters of base64 in a page, about; steps between are left out beyond it."""

Row = tuple[str, int, int]
"""Prompt, seed, and which of the samples that share these."""


@dataclass(frozen=True)
class Grid:
    """Samples by row and step."""

    rows: list[Row]
    cells: Mapping[tuple[Row, int], Sample]
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
    cells = {}
    for step, of_step in samples.items():
        seen: Counter[tuple[str, int]] = Counter()
        for sample in of_step:
            row = (sample.prompt, sample.seed, seen[sample.prompt, sample.seed])
            seen[sample.prompt, sample.seed] += 1
            cells[row, step] = sample
    steps = [step for step, of_step in samples.items() if of_step]
    sizes = [sum(embedded_size(s.path) for s in samples[step]) for step in steps]
    shown = [steps[i] for i in chosen(sizes, limit)]
    rows = list(dict.fromkeys(row for row, step in cells if step in shown))
    return Grid(rows, cells, shown, len(steps))


def gallery(samples: Mapping[int, Sequence[Sample]], limit: int = MAX_EMBEDDED) -> str:
    """The section's HTML; empty if nothing was sampled."""
    found = grid(samples, limit)
    if not found.steps:
        return ""
    parts = [_left_out(found, limit)] if len(found.steps) < found.num_steps else []
    if len(found.steps) > 1:
        parts.append(_slider(found.steps))
    parts += [_row(found, row) for row in found.rows]
    return "\n".join(parts)


def _left_out(found: Grid, limit: int) -> str:
    return note(
        f"{len(found.steps)} of {found.num_steps} sampled steps are embedded, so that this page stays near "
        f"{size(limit)}; all of them lie in samples/."
    )


def _slider(steps: Sequence[int]) -> str:
    start = len(steps) // 2
    return (
        '<div class="slider"><label for="step">Sampled after step</label>'
        f'<input type="range" id="step" min="0" max="{len(steps) - 1}" value="{start}" step="1"'
        f' data-steps="{json.dumps(list(steps))}"><output for="step">{steps[start]:,}</output></div>'
    )


def _row(found: Grid, row: Row) -> str:
    prompt = row[0]
    described = next(found.cells[row, step] for step in found.steps if (row, step) in found.cells)
    figures = "\n".join(_cell(found, row, step) for step in found.steps)
    of_size = f"{text(extent(described.size))} · " if described.size else ""
    few = " few" if len(found.steps) < 3 else ""
    return (
        f'<article class="prompt"><h3>{text(prompt) or "<em>empty prompt</em>"}</h3>'
        f'<p class="meta">{of_size}{text(described.settings)}</p>'
        f'<div class="strip{few}">\n{figures}\n</div></article>'
    )


def _cell(found: Grid, row: Row, step: int) -> str:
    where, name = _name(found.steps, step)
    sample = found.cells.get((row, step))
    shown = _media(sample, step) if sample else '<div class="missing">no sample</div>'
    return f'<figure class="{where}" data-step="{step}">{shown}<figcaption>{name}</figcaption></figure>'


def _name(steps: Sequence[int], step: int) -> tuple[str, str]:
    """Where a step stands in the strip, and its caption."""
    at = f"after {count(step, 'step')}"
    if step == steps[0]:
        return "first", "<b>before</b> training" if step == 0 else f"<b>first</b>, {at}"
    if step == steps[-1]:
        return "last", f"<b>after</b> {count(step, 'step')}"
    return "between", at


def _media(sample: Sample, step: int) -> str:
    if sample.path.suffix == ".txt":
        return f'<blockquote class="answer">{text(sample.path.read_text(encoding="utf-8"))}</blockquote>'
    data = b64encode(sample.path.read_bytes()).decode()
    told = text(f"{sample.prompt} (after step {step})")
    sides = re.search(r"(\d+)x(\d+)$", sample.size)
    shape = f' width="{sides[2]}" height="{sides[1]}"' if sides else ""
    if sample.path.suffix == ".mp4":
        source = f'src="data:video/mp4;base64,{data}"'
        return f'<video autoplay loop muted playsinline{shape} aria-label="{told}" {source}></video>'
    return f'<img alt="{told}"{shape} src="data:image/png;base64,{data}">'
