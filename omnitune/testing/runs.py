"""Small runs through the command line, and what they leave behind."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

MEASURED = ("seconds", "samples_per_second", "peak_memory_bytes")
"""Fields of metrics.jsonl that differ between two equal runs."""


def small_run(model: Path, cache: Path, **keys: Any) -> dict[str, Any]:
    """Describe a run of two buckets on the bundled clips and pictures; `keys` replace top-level ones."""
    assets = Path(str(files("omnitune") / "assets"))
    return {
        "model": {"family": "wan", "path": str(model), "dtype": "float32"},
        "objective": {"name": "flow_matching", "shift": 3},
        "trainable": [{"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": {"rank": 4, "alpha": 10}}],
        "data": {
            "sources": [{"path": str(assets / kind / "train")} for kind in ("clips", "pictures")],
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


def start(*words: str | Path, cwd: Path) -> "subprocess.Popen[str]":
    """Start `omnitune WORDS` in a folder, one thread a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "omnitune.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 300) -> "subprocess.CompletedProcess[str]":
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def omnitune(*words: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `omnitune WORDS` in a folder; returncode, stdout and stderr of it."""
    return ended(start(*words, cwd=cwd))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run folder's metrics.jsonl says of each step, without what is measured by the clock."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]
