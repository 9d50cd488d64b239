"""Does a pretrained vision-language model learn to name categories of pictures that it has not seen?

    python recipes/vlm/questions.py PACKAGES vlm-work
    OMP_NUM_THREADS=1 python benchmarks/pretrained_vlm.py vlm-work

Trains recipes/vlm/categories.yaml with each seed and measures the exact match of the held-out questions by
`omnitune evaluate`: as they are, and with the picture of another question. Prints a line a seed and the worst
seed's figures last; exits with 1 where exact match is not LEAST above the commonest answer and above itself
with shuffled pictures. A second call goes on where the first one stopped.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_run import OMNITUNE, machine, verdict

RUN = Path(__file__).parents[1] / "recipes" / "vlm" / "categories.yaml"
LEAST, LEAST_PICTURES = 0.10, 100


@dataclass(frozen=True)
class Found:
    """Of one seed, as shares of the held-out questions."""

    right: float
    shuffled: float
    commonest: float
    """Exact match of the commonest answer, given to everything."""
    count: int

    @property
    def margin(self) -> float:
        return self.right - max(self.shuffled, self.commonest)


def exact_match(folder: Path, run: Path, questions: str) -> dict[str, Any]:
    """The row of `omnitune evaluate`."""
    out = run / "evaluation" / questions
    words = ["evaluate", run, "--data", questions, "--metrics", "exact_match", "--out", out]
    subprocess.run([*OMNITUNE, *map(str, words)], cwd=folder, check=True)
    (row,) = json.loads((folder / out).read_text())["metrics"]
    found: dict[str, Any] = row
    return found


def measure(folder: Path, seed: int, changes: list[str]) -> Found:
    run = Path("runs") / f"categories-{seed}"
    stated = [f"seed={seed}", f"name={run.name}", *changes]
    subprocess.run([*OMNITUNE, "train", "categories.yaml", *stated], cwd=folder, check=True)
    right, shuffled = (exact_match(folder, run, f"{name}.json") for name in ("held_out", "shuffled"))
    return Found(right["value"], shuffled["value"], right["chance"], right["count"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="what recipes/vlm/questions.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("changes", nargs="*", metavar="a.b=c", help="changes of the run")
    arguments = parser.parse_args()
    print(machine())
    shutil.copy(RUN, arguments.folder / RUN.name)
    every = []
    for seed in arguments.seeds:
        started = time.monotonic()
        one = measure(arguments.folder, seed, arguments.changes)
        every.append(one)
        print(
            f"seed {seed}: exact match {one.right:.1%} of {one.count} held-out pictures, "
            f"{one.shuffled:.1%} with shuffled pictures, {one.commonest:.1%} by the commonest answer, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    least = min(one.margin for one in every)
    holds = least >= LEAST and all(one.count >= LEAST_PICTURES for one in every)
    return verdict(
        f"pretrained vlm: exact match {least:.1%} above both at least, asked {LEAST:.0%}, {len(every)} seeds",
        holds,
    )


if __name__ == "__main__":
    sys.exit(main())
