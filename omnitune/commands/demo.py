"""The whole way on a laptop: a small base model that is really trained learns a new style by LoRA."""

import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from .. import config
from ..evaluate import EvaluateRequest, is_installed
from ..files import write_json
from ..parallel.mesh import Mesh
from ..progress import say
from ..report import write_report
from . import train as session
from .evaluate import evaluator

FOLDER = session.RUNS / "demo"
METRICS = "loss,kid"


def demo() -> None:
    """Train, compare with the base, show; the same command again goes on or shows the result."""
    started = time.monotonic()
    with as_file(files("omnitune") / "assets") as assets:
        train(assets)
        rows = compare(FOLDER, assets) if is_installed() else []
    if not rows:
        say("install omnitune[eval] to compare with the model before training")
    write_json(FOLDER / "results.json", rows)
    write_report(FOLDER)
    for row in rows:
        print(f"{row['name']}: {row['before']:.3f} before, {row['after']:.3f} after ({change(row):+.0%})")
    print(f"weights: {FOLDER / 'weights'}")
    print(f"samples: {FOLDER / 'samples'}")
    print(f"report: {FOLDER / 'report.html'}")
    print(f"{time.monotonic() - started:.0f} s")


def train(assets: Path, overrides: Sequence[str] = ()) -> None:
    """Fine-tune the bundled base on the bundled style."""
    words = [f"model.path={assets / 'pocket-wan'}", f"data.sources.0.path={assets / 'style' / 'train'}"]
    run, _ = config.load(assets / "demo.yaml", [*words, *overrides])
    session.train(run, Mesh(run.parallel))


def compare(folder: Path, assets: Path) -> list[dict[str, Any]]:
    """Measure a run and its base on drawings of things that were not trained on; lower is better."""
    held_out = assets / "style" / "validation"
    found = []
    for base in (True, False):
        request = EvaluateRequest(folder=folder, data=held_out, metrics=METRICS, base=base)
        found.append({r.name: r.value for r in evaluator(request).measures() if "(u =" not in r.name})
    before, after = found
    return [
        {"name": name, "before": before[name], "after": value, "better": "lower"}
        for name, value in after.items()
    ]


def change(row: dict[str, Any]) -> float:
    """By how much of its value before a figure moved."""
    return float(row["after"] / row["before"] - 1)
