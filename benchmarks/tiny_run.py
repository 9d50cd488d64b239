"""What the benchmarks measure on: a random Wan model, the bundled clips, a run file, a filled cache.

Nothing here imports torch into the benchmark itself, where it would share its pages with what is measured.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

OMNITUNE = (sys.executable, "-m", "omnitune.cli")

RUN = """\
model: {{family: wan, path: {model}, dtype: {dtype}}}
trainable: {{lora: {{}}}}
data:
  sources: [{{path: {clips}}}]
  buckets: {{frames: [{frames}], sizes: [{size}]}}
  cache: {cache}
  num_workers: 0
schedule: {{steps: {steps}}}
"""


@dataclass(frozen=True)
class Settings:
    """Of the model and of one sample; all that is not here is omnitune's default."""

    layers: int
    heads: int
    head_dim: int
    frames: int
    size: str
    dtype: str
    steps: int


@dataclass(frozen=True)
class TinyRun:
    """Files of a run that can start training at once."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def file(self) -> Path:
        return self.folder / "run.yaml"


@contextmanager
def tiny_run(settings: Settings) -> Iterator[TinyRun]:
    """Write a run with its cache filled into a temporary folder, and print the machine and the settings."""
    print(machine())
    print(", ".join(f"{name} {value}" for name, value in asdict(settings).items()))
    with TemporaryDirectory() as name:
        run = TinyRun(Path(name))
        subprocess.run([sys.executable, __file__, str(run.model), *_sizes(settings)], check=True)
        values = {"model": run.model, "clips": _clips(), "cache": run.folder / "cache"}
        run.file.write_text(RUN.format(**values, **asdict(settings)))
        subprocess.run([*OMNITUNE, "cache", run.file], cwd=run.folder, check=True, stdout=subprocess.DEVNULL)
        yield run


def machine() -> str:
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    cores = len(os.sched_getaffinity(0))
    return f"{_processor()}, {cores} cores, threads {threads}; Python {platform.python_version()} {packages}"


def verdict(figure: str, holds: bool) -> int:
    """Print the figure as the last line; returns the exit code."""
    print(f"{figure}: {'holds' if holds else 'FALLS SHORT'}")
    return 0 if holds else 1


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def _clips() -> Path:
    import omnitune

    return Path(omnitune.__file__).parent / "assets" / "clips" / "train"


def _sizes(settings: Settings) -> list[str]:
    return [str(size) for size in (settings.layers, settings.heads, settings.head_dim)]


def _build() -> None:
    from omnitune.testing.tiny import build_tiny

    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", type=Path)
    for name in ("layers", "heads", "head_dim"):
        arguments.add_argument(name, type=int)
    given = arguments.parse_args()
    sizes = {
        "num_layers": given.layers,
        "num_attention_heads": given.heads,
        "attention_head_dim": given.head_dim,
        "ffn_dim": 2 * given.heads * given.head_dim,
    }
    build_tiny(given.folder, transformer=sizes)


if __name__ == "__main__":
    _build()
