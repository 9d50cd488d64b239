"""Curves of a run as inline SVG, readable without a script; the page's script adds the hover read-out."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .contents import Record
from .markup import short, text

MAX_POINTS = 1000
PLOT = 1000
"""Width and height of the plot in its own units; the page stretches it to its place."""


@dataclass(frozen=True)
class Series:
    name: str
    steps: list[int]
    values: list[float]
    style: str
    """`raw`, `smooth`, or `c0`, `c1`... where several stand beside each other."""


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    ticks: list[float]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Chart:
    name: str
    title: str
    series: list[Series]
    from_zero: bool = True
    spiky: bool = False
    note: str = ""


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Exponential moving average over about `span` values, corrected for its start at zero."""
    decay, total, weight = 1 - 1 / span, 0.0, 0.0
    found = []
    for value in values:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        found.append(total / weight)
    return found


def thin(values: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """Indices of at most `limit` values that draw the same curve: the ends, and each bucket's extremes."""
    if len(values) <= limit:
        return list(range(len(values)))
    num_buckets = (limit - 2) // 2
    kept = {0, len(values) - 1}
    for i in range(num_buckets):
        bucket = range(i * len(values) // num_buckets, (i + 1) * len(values) // num_buckets)
        kept |= {min(bucket, key=values.__getitem__), max(bucket, key=values.__getitem__)}
    return sorted(kept)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def value_axis(chart: Chart) -> Axis:
    """The axis of all values; of spiky ones it leaves out a few spikes that would flatten everything else."""
    # An average lies within what it averages, but drags the spikes along: only the raw values decide.
    shown = chart.series[:1] if chart.spiky else chart.series
    ordered = sorted(value for series in shown for value in series.values)
    low, high = ordered[0], ordered[-1]
    first, bulk = (ordered[round(q * (len(ordered) - 1))] for q in (0.01, 0.98))
    if chart.spiky and len(ordered) >= 50 and first < bulk and high > bulk + 4 * (bulk - first):
        high = bulk + 0.25 * (bulk - first)
    low = min(low, 0.0) if chart.from_zero or low == high else low
    high = high if high > low else low + 1
    marks = ticks(low, high)
    return Axis(marks[0], marks[-1], marks)


def step_axis(steps: Sequence[int]) -> Axis:
    low, high = min(steps), max(max(steps), min(steps) + 1)
    marks = [t for t in ticks(low, high) if low <= t <= high and t == int(t)]
    return Axis(low, high, marks)


def curve(x: Axis, y: Axis, series: Series) -> str:
    points = [
        f"{x.place(step) * PLOT:.2f},{(1 - y.place(value)) * PLOT:.2f}"
        for step, value in zip(series.steps, series.values, strict=True)
    ]
    if len(points) == 1:
        points *= 2  # a line of no length is drawn as a dot
    return f'<polyline class="line {series.style}" points="{" ".join(points)}"/>'


def grid(x: Axis, y: Axis) -> str:
    """Lines and labels at percentages, so that a plot of any size keeps its text's size."""
    parts = []
    for tick in y.ticks:
        at = f"{(1 - y.place(tick)) * 100:.3f}%"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick y" x="0" y="{at}" dx="-8" dy="4">{short(tick)}</text>')
    for tick in x.ticks:
        at = f"{x.place(tick) * 100:.3f}%"
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="100%" y2="100%"/>')
        parts.append(f'<text class="tick x" x="{at}" y="100%" dy="18">{short(tick)}</text>')
    return "".join(parts)


def figure(chart: Chart) -> str:
    """One chart: legend, plot, read-out, and the numbers for the script."""
    drawn = [_thinned(series) for series in chart.series]
    x = step_axis([step for series in drawn for step in series.steps])
    y = value_axis(chart)
    outside = [v for v in chart.series[0].values if v > y.high]
    notes = [chart.note] if chart.note else []
    if outside:
        notes.append(f"{len(outside)} above the frame, the highest {short(max(outside))}")
    numbers = {
        "x": [x.low, x.high],
        "y": [y.low, y.high],
        "series": [
            {
                "name": s.name,
                "style": s.style,
                "steps": s.steps,
                "values": [float(f"{v:.6g}") for v in s.values],
            }
            for s in drawn
        ],
    }
    embedded = json.dumps(numbers).replace("</", r"<\/")  # nothing in it may end the script element
    keys = drawn if len(drawn) > 1 else []
    legend = "".join(f'<span class="key {s.style}">{text(s.name)}</span>' for s in keys)
    return (
        f'<figure class="chart" id="curve-{chart.name}"><figcaption><strong>{text(chart.title)}</strong>'
        f'<span class="legend">{legend}</span></figcaption>'
        f'<svg class="plot" role="img" tabindex="0" aria-label="{text(_spoken(chart))}">{grid(x, y)}'
        f'<svg width="100%" height="100%" viewBox="0 0 {PLOT} {PLOT}" preserveAspectRatio="none"'
        f' class="{"cut" if outside else "free"}">{"".join(curve(x, y, s) for s in drawn)}</svg></svg>'
        f'<p class="readout"><output>{text(_last(drawn))}</output>'
        f"{''.join(f'<span> · {text(n)}</span>' for n in notes)}</p>"
        f'<script type="application/json">{embedded}</script></figure>'
    )


def figures(metrics: Sequence[Record]) -> str:
    """All curves that the metrics hold."""
    charts = [
        _smoothed(metrics, "loss", "Loss", lambda r: r.get("loss"), from_zero=False),
        _smoothed(metrics, "grad-norm", "Gradient norm", lambda r: r.get("grad_norm")),
        _rates(metrics),
        _smoothed(metrics, "speed", "Samples per second", lambda r: r.get("samples_per_second")),
        _plain(metrics, "memory", "Peak memory, GiB", lambda r: _gib(r.get("peak_memory_bytes"))),
    ]
    return "\n".join(figure(chart) for chart in charts if chart is not None)


def _smoothed(
    metrics: Sequence[Record], name: str, title: str, value: Callable[[Record], Any], from_zero: bool = True
) -> Chart | None:
    steps, values, left = _finite((r["step"], value(r)) for r in metrics)
    if not values:
        return None
    span = max(10, len(values) // 40)
    series = [
        Series("each step", steps, values, "raw"),
        Series(f"smoothed over {span} steps", steps, smooth(values, span), "smooth"),
    ]
    return Chart(name, title, series, from_zero, spiky=True, note=_left_out(left))


def _plain(metrics: Sequence[Record], name: str, title: str, value: Callable[[Record], Any]) -> Chart | None:
    steps, values, left = _finite((r["step"], value(r)) for r in metrics)
    return (
        Chart(name, title, [Series("peak", steps, values, "smooth")], note=_left_out(left))
        if values
        else None
    )


def _rates(metrics: Sequence[Record]) -> Chart | None:
    rules = sorted({rule for r in metrics for rule in r.get("lr", {})}, key=int)
    series = []
    for i, rule in enumerate(rules):
        steps, values, _ = _finite((r["step"], r.get("lr", {}).get(rule)) for r in metrics)
        series.append(Series(f"rule {rule}", steps, values, f"c{i % 6}"))
    return Chart("lr", "Learning rate", series) if any(s.values for s in series) else None


def _finite(pairs: Iterable[tuple[int, Any]]) -> tuple[list[int], list[float], int]:
    """Steps and values that are there and can be drawn, and how many are infinite or not a number."""
    found = [(step, value) for step, value in pairs if value is not None]
    drawn = [(step, float(value)) for step, value in found if math.isfinite(value)]
    return [s for s, _ in drawn], [v for _, v in drawn], len(found) - len(drawn)


def _left_out(number: int) -> str:
    return f"{number} not finite and left out" if number else ""


def _gib(value: int | None) -> float | None:
    return None if value is None else value / 2**30


def _thinned(series: Series) -> Series:
    kept = thin(series.values)
    return Series(
        series.name, [series.steps[i] for i in kept], [series.values[i] for i in kept], series.style
    )


def _last(drawn: Sequence[Series]) -> str:
    values = " · ".join(f"{s.name}: {short(s.values[-1])}" for s in drawn if s.values)
    return f"step {max(s.steps[-1] for s in drawn if s.steps):,} · {values}"


def _spoken(chart: Chart) -> str:
    main = chart.series[-1]
    low = min(range(len(main.values)), key=main.values.__getitem__)
    return (
        f"{chart.title}, {main.name}: {short(main.values[0])} at step {main.steps[0]}, "
        f"{short(main.values[-1])} at step {main.steps[-1]}, "
        f"lowest {short(main.values[low])} at step {main.steps[low]}"
    )
