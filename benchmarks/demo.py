"""The demo with several seeds: how much the held-out loss and the distance to the style fall.

    python benchmarks/demo.py

Prints a line a seed and the worst seed's figures last; exits with 1 where one falls short: the held-out loss
by 15 %, KID-EffLite0 by 30 %, against the shipped base.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from omnitune.commands import demo
from omnitune.commands.bundled import bundled_run
from omnitune.commands.train import train

LEAST = {"held-out loss": 0.15, "KID-EffLite0": 0.30}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    falls: dict[str, list[float]] = {name: [] for name in LEAST}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in seeds:
            started = time.monotonic()
            train(bundled_run(f"seed={seed}", f"name=demo-{seed}"))
            rows = demo.compare(Path("runs") / f"demo-{seed}")
            seconds = time.monotonic() - started
            for row in rows:
                falls[row["name"]].append(-demo.change(row))
            told = ", ".join(f"{r['name']} {r['before']:.3f} to {r['after']:.3f}" for r in rows)
            print(f"seed {seed}: {told}, {seconds:.0f} s", flush=True)
    short = [name for name, least in LEAST.items() if min(falls[name]) < least]
    print("; ".join(f"{name} falls by {min(values):.1%} at least" for name, values in falls.items()))
    sys.exit(bool(short))


if __name__ == "__main__":
    main()
