"""The whole way on a laptop: a small base model that is really trained learns a new style by LoRA."""

import time
from pathlib import Path
from typing import Any

from ..evaluate import Asked, Evaluation, is_installed
from ..files import write_json
from ..progress import say
from ..report import write_report
from ..run_folder import RUNS
from .bundled import ASSETS, bundled_run
from .train import train

FOLDER = RUNS / "demo"
METRICS = "loss,kid"
SHOWN = {"weights": "weights", "samples": "samples", "report": "report.html"}


def demo() -> list[str]:
    """Train, compare with the base, show; the same command again goes on or shows the result."""
    started = time.monotonic()
    train(bundled_run())
    rows = compare(FOLDER) if is_installed() else []
    if not rows:
        say("install omnitune[eval] to compare with the model before training")
    write_json(FOLDER / "results.json", rows)
    write_report(FOLDER)
    return [
        *(
            f"{row['name']}: {row['before']:.3f} before, {row['after']:.3f} after ({change(row):+.0%})"
            for row in rows
        ),
        *(f"{name}: {FOLDER / file}" for name, file in SHOWN.items()),
        f"{time.monotonic() - started:.0f} s",
    ]


def compare(folder: Path) -> list[dict[str, Any]]:
    """Measure a run and its base on drawings of things that were not trained on; lower is better."""
    held_out = ASSETS / "style" / "validation"
    found = []
    for base in (True, False):
        asked = Asked(folder=folder, data=held_out, metrics=METRICS, base=base)
        found.append({row.name: row.value for row in Evaluation(asked).measures() if "(u =" not in row.name})
    before, after = found
    return [
        {"name": name, "before": before[name], "after": value, "better": "lower"}
        for name, value in after.items()
    ]


def change(row: dict[str, Any]) -> float:
    """By how much of its value before a figure moved."""
    return float(row["after"] / row["before"] - 1)
