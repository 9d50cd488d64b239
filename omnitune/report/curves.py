"""Curves of a run: lines and axes, which page.html.jinja draws and page.js reads out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .contents import Record
from .formats import short

MAX_POINTS = 1000
PLOT = 1000
"""Width and height of the plot in its own units; the page stretches it to its place."""

Points = Sequence[tuple[int, float]]
"""(step, value)"""


@dataclass(frozen=True)
class Series:
    name: str
    style: str
    """`raw`, `smooth`, or `c0`, `c1`... where several stand beside each other."""
    steps: list[int]
    values: list[float]

    def thinned(self) -> "Series":
        """The same line of no more points than can be seen, in six digits."""
        kept = thin(self.values)
        values = [float(f"{self.values[i]:.6g}") for i in kept]
        return Series(self.name, self.style, [self.steps[i] for i in kept], values)


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
    x: Axis
    y: Axis
    series: list[Series]
    cut: bool
    """Whether spikes lie above the frame."""
    notes: list[str]

    def polyline(self, series: Series) -> str:
        """The points of a line, in units of the plot."""
        points = [
            f"{self.x.place(step) * PLOT:.2f},{(1 - self.y.place(value)) * PLOT:.2f}"
            for step, value in zip(series.steps, series.values, strict=True)
        ]
        return " ".join(points * 2 if len(points) == 1 else points)  # a line of no length is drawn as a dot


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


def value_axis(values: Sequence[float], from_zero: bool, spiky: bool) -> Axis:
    """The axis of values; of spiky ones it leaves out a few spikes that would flatten everything else."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    first, bulk = (ordered[round(q * (len(ordered) - 1))] for q in (0.01, 0.98))
    if spiky and len(ordered) >= 50 and first < bulk and high > bulk + 4 * (bulk - first):
        high = bulk + 0.25 * (bulk - first)
    low = min(low, 0.0) if from_zero or low == high else low
    marks = ticks(low, high if high > low else low + 1)
    return Axis(marks[0], marks[-1], marks)


def step_axis(steps: Sequence[int]) -> Axis:
    low, high = min(steps), max(max(steps), min(steps) + 1)
    return Axis(low, high, [t for t in ticks(low, high) if low <= t <= high and t == int(t)])


def charts(metrics: Sequence[Record]) -> list[Chart]:
    """All curves that the metrics hold."""
    rules = sorted({rule for r in metrics for rule in r.get("lr", {})}, key=int)
    rates = {
        f"rule {rule}": _column([{"step": r["step"], **r.get("lr", {})} for r in metrics], rule)
        for rule in rules
    }
    memory = [(step, value / 2**30) for step, value in _column(metrics, "peak_memory_bytes")]
    found = [
        _chart("loss", "Loss", {"each step": _column(metrics, "loss")}, from_zero=False, spiky=True),
        _chart("grad-norm", "Gradient norm", {"each step": _column(metrics, "grad_norm")}, spiky=True),
        _chart("lr", "Learning rate", rates),
        _chart(
            "speed", "Samples per second", {"each step": _column(metrics, "samples_per_second")}, spiky=True
        ),
        _chart("memory", "Peak memory, GiB", {"peak": memory}),
    ]
    return [chart for chart in found if chart is not None]


def _column(metrics: Sequence[Record], key: str) -> Points:
    return [(r["step"], r[key]) for r in metrics if r.get(key) is not None]


def _chart(
    name: str, title: str, lines: Mapping[str, Points], from_zero: bool = True, spiky: bool = False
) -> Chart | None:
    """A chart of what is finite; None if nothing is. A spiky line has its moving average beside it."""
    finite = {label: [p for p in points if math.isfinite(p[1])] for label, points in lines.items()}
    series = [
        Series(label, f"c{i % 6}", [step for step, _ in points], [value for _, value in points])
        for i, (label, points) in enumerate(finite.items())
        if points
    ]
    if not series:
        return None
    # An average lies within what it averages, but drags the spikes along: only the raw values decide.
    y = value_axis([value for s in series for value in s.values], from_zero, spiky)
    outside = [value for value in series[0].values if value > y.high]
    if spiky:
        (raw,) = series
        span = max(10, len(raw.values) // 40)
        average = Series(f"smoothed over {span} steps", "smooth", raw.steps, smooth(raw.values, span))
        series = [replace(raw, style="raw"), average]
    drawn = [s.thinned() for s in series]
    notes = []
    if left := sum(map(len, lines.values())) - sum(map(len, finite.values())):
        notes.append(f"{left} not finite and left out")
    if outside:
        notes.append(f"{len(outside)} above the frame, the highest {short(max(outside))}")
    x = step_axis([step for s in drawn for step in s.steps])
    return Chart(name, title, x, y, drawn, bool(outside), notes)
