"""Small runs through the command line, and what they leave behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..families import BUNDLED

MEASURED = ("seconds", "samples_per_second", "peak_memory_bytes")
"""Fields of metrics.jsonl that differ between two equal runs."""
ASSETS = Path(str(files("omnitune") / "assets"))


def small_run(model: Path, cache: Path, **keys: Any) -> dict[str, Any]:
    """Describe a run of two buckets on the bundled clips and pictures; `keys` replace top-level ones."""
    return {
        "model": {"family": BUNDLED, "path": str(model), "dtype": "float32"},
        "objective": {"name": "flow_matching", "shift": 3},
        "trainable": [{"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": {"rank": 4, "alpha": 10}}],
        "data": {
            "sources": [{"path": str(ASSETS / kind / "train")} for kind in ("clips", "pictures")],
            "buckets": {"frames": [1, 9], "sizes": ["32x32"]},
            "batch_size": 4,
            "cache": str(cache),
        },
        "schedule": {"steps": 3},
        "tracking": {"draws": True},
        **keys,
    }


def write_run(path: Path, run: Mapping[str, Any]) -> Path:
    """Write a run as YAML (JSON is YAML)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1))
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; minus the signal's number where one killed it."""
    out: str
    err: str


def start(*words: str | Path, cwd: Path) -> "subprocess.Popen[str]":
    """Start `omnitune WORDS` in a folder as a shell does, one thread a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "omnitune.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 300) -> Ended:
    """Wait for a command that `start` gave."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, out, err)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run folder's metrics.jsonl says of each step, without what is measured by the clock."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]
