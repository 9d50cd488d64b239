"""What `omnitune check` costs over many pictures: the first time, and when nothing changed.

    python benchmarks/check.py                    # exits with 1 where the bound is missed
    python benchmarks/check.py --pictures 200

Pictures of 1024x768 are made anew; the last line is the CPU time of a second check beyond start-up.
"""

import argparse
import os
import pty
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from omnitune.testing.runs import ASSETS, small_run, write_run

BOUND = 5.0
"""CPU seconds of a second check beyond start-up."""


class Checked(NamedTuple):
    """What one check took."""

    seconds: float
    cpu: float
    told: float
    """Seconds until something was told."""
    silence: float
    """The longest time in which nothing was."""


def pictures(folder: Path, number: int) -> None:
    """Write JPEGs of about the size of photographs, each with a caption."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(number):
        coarse = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:05}.jpg", quality=90)
        (folder / f"{i:05}.txt").write_text(f"picture {i}")


def check(run: Path) -> Checked:
    """Check a run on a terminal, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    words = [sys.executable, "-m", "omnitune", "check", str(run)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        os.close(theirs)
        told, last, silence = -1.0, start, 0.0
        with suppress(OSError):  # the end of a terminal
            while os.read(ours, 1 << 16):
                now = time.monotonic()
                told = now - start if told < 0 else told
                silence, last = max(silence, now - last), now
    os.close(ours)
    if process.returncode:
        sys.exit(f"check ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Checked(time.monotonic() - start, cpu, told, silence)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--pictures", type=int, default=2000)
    number = words.parse_args().pictures
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for name, count in (("many", number), ("few", 1)):
            pictures(Path(name), count)
            run = small_run(ASSETS / "pocket-wan", Path("cache"))
            run["data"] |= {"sources": [name], "buckets": {"frames": [1], "area": "512x512"}}
            write_run(Path(f"{name}.yaml"), run)
        check(Path("few.yaml"))
        start_up = check(Path("few.yaml")).cpu
        first = check(Path("many.yaml"))
        cores = len(os.sched_getaffinity(0))
        print(f"first check of {number}: {first.seconds:.1f} s, {first.cpu:.1f} s of CPU, {cores} cores")
        print(f"told after {first.told:.1f} s, never silent for more than {first.silence:.1f} s")
        second = check(Path("many.yaml"))
    beyond = second.cpu - start_up
    print(f"second check: {second.seconds:.1f} s, {second.cpu:.1f} s of CPU; start-up {start_up:.1f} s")
    print(f"{beyond:.2f} s of CPU beyond start-up, at most {BOUND:g}")
    sys.exit(beyond > BOUND)


if __name__ == "__main__":
    main()
