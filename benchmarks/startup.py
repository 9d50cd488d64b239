"""What omnitune adds to the start of a process: to `--help`, to a mistake in YAML, and to the first step.

Medians of five differences, on a warm disk, what is compared alternating. The first step is compared with a
script that imports torch and diffusers and loads the transformer, as every training script has to.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_run import OMNITUNE, Settings, TinyRun, tiny_run, verdict, wan

HELP_BOUND = 0.3
MISTAKE_BOUND = 1.0
STEP_BOUND = 2.0
PAIRS = 5
# The first of two steps is not the last, so its line comes before any checkpoint, export or report.
SETTINGS = Settings(wan(layers=2, heads=2, head_dim=12), frames=9, size="64x64", dtype="float32", steps=2)

EMPTY = (sys.executable, "-c", "pass")
LOAD = """\
import sys
import torch
from diffusers import WanPipeline, WanTransformer3DModel
WanTransformer3DModel.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
print("loaded", file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Extra:
    """Seconds that ours took beyond what it is compared with, pair by pair."""

    name: str
    ours: list[float]
    theirs: list[float]
    bound: float

    @property
    def seconds(self) -> float:
        return statistics.median(o - t for o, t in zip(self.ours, self.theirs, strict=True))

    @property
    def holds(self) -> bool:
        return self.seconds <= self.bound

    def __str__(self) -> str:
        return f"{self.name} {self.seconds:+.2f} s (bound {self.bound})"

    def table(self) -> str:
        rows = (f"{o:.2f} - {t:.2f}" for o, t in zip(self.ours, self.theirs, strict=True))
        return f"{self.name}, seconds, ours - theirs: {', '.join(rows)}"


def seconds_to_end(command: Sequence[str | Path]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def seconds_to_line(command: Sequence[str | Path], beginning: str, folder: Path, code: int = 0) -> float:
    """From the start of a process to a line on stderr; its end is waited for, not counted."""
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(beginning):
                found = time.perf_counter() - start
                break
        else:
            raise RuntimeError(f"{command} ended without a line {beginning!r}: {''.join(lines)}")
        process.stderr.read()
    if process.returncode != code:
        raise RuntimeError(f"{command} exited with {process.returncode}")
    return found


def measure_help() -> list[Extra]:
    commands = {
        "python -m omnitune.cli --help": (*OMNITUNE, "--help"),
        "omnitune --help": (_script(), "--help"),
    }
    seconds_to_end(EMPTY)
    for command in commands.values():
        seconds_to_end(command)
    empty: list[float] = []
    ours: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(PAIRS):
        empty.append(seconds_to_end(EMPTY))
        for name, command in commands.items():
            ours[name].append(seconds_to_end(command))
    return [Extra(name, times, empty, HELP_BOUND) for name, times in ours.items()]


def measure_mistake(run: TinyRun) -> Extra:
    """A key and a value that are wrong, told and ended."""
    wrong = run.folder / "wrong.yaml"
    wrong.write_text(f"{run.file.read_text()}\nepochs: 3\noptimizer: {{name: adam, lr: -1}}\n")
    line = f"{wrong}:"

    def told() -> float:
        return seconds_to_line([*OMNITUNE, "check", wrong], line, run.folder, code=2)

    told()
    return Extra("a mistake in YAML", [told() for _ in range(PAIRS)], [0.0] * PAIRS, MISTAKE_BOUND)


def measure_first_step(run: TinyRun) -> Extra:
    """Each training starts a run of its own: to go on with a finished one would not step.

    The log writes its first step at once, not in bunches, and shows it as `step 1/2`.
    """

    def load() -> float:
        return seconds_to_line([sys.executable, "-c", LOAD, run.model / "transformer"], "loaded", run.folder)

    def train(name: str) -> float:
        return seconds_to_line([*OMNITUNE, "train", run.file, f"name={name}"], "step 1/", run.folder)

    load()
    train("warm-up")
    pairs = [(load(), train(f"run-{i}")) for i in range(PAIRS)]
    return Extra(
        "first training step", [ours for _, ours in pairs], [theirs for theirs, _ in pairs], STEP_BOUND
    )


def _script() -> Path:
    """The installed command, beside the interpreter."""
    return Path(sys.executable).parent / "omnitune"


def main() -> int:
    with tiny_run(SETTINGS) as run:
        extras = [*measure_help(), measure_mistake(run), measure_first_step(run)]
    print(*(extra.table() for extra in extras), sep="\n")
    return verdict("startup: " + ", ".join(map(str, extras)), all(extra.holds for extra in extras))


if __name__ == "__main__":
    sys.exit(main())
