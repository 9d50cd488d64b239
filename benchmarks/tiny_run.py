"""What the benchmarks measure on: a random model, bundled clips or pictures, a run file, a filled cache.

Nothing here imports torch into the benchmark itself, where it would share its pages with what is measured.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OMNITUNE = (sys.executable, "-m", "omnitune.cli")

RUN = """\
model: {{family: {family}, path: {model}, dtype: {dtype}}}
objective: {{name: {objective}}}
conditions: {conditions}
trainable: {{lora: {{}}}}
data:
  sources: [{{path: {samples}}}]
  buckets: {{frames: [{frames}], sizes: [{size}]}}
  batch_size: {batch_size}
  cache: {cache}
  num_workers: 0
schedule: {{steps: {steps}}}
"""


@dataclass(frozen=True)
class Settings:
    """Of the model and of one sample; all that is not here is omnitune's default."""

    transformer: Mapping[str, Any]
    """What replaces the family's small sizes."""
    frames: int
    size: str
    dtype: str
    steps: int
    family: str = "wan"
    variant: str | None = None
    """Absent: the family's first."""
    batch_size: int = 1
    num_samples: int | None = None
    """So many of the bundled, all under one caption, so that steps do not differ; absent: all."""


def wan(layers: int, heads: int, head_dim: int) -> dict[str, int]:
    """Sizes of a Wan transformer."""
    return {
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "ffn_dim": 2 * heads * head_dim,
    }


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
    """As `written_run`, and print the machine and the settings."""
    print(machine())
    print(", ".join(f"{name} {value}" for name, value in asdict(settings).items()))
    with written_run(settings) as run:
        yield run


@contextmanager
def written_run(settings: Settings) -> Iterator[TinyRun]:
    """Write a run with its cache filled into a temporary folder."""
    with TemporaryDirectory() as name:
        run = TinyRun(Path(name))
        subprocess.run([sys.executable, __file__, name, json.dumps(asdict(settings))], check=True)
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


def _write(run: TinyRun, settings: Settings) -> None:
    """Write the model, the samples and the run file; in a process of its own, for it imports torch."""
    from omnitune.families import resolve
    from omnitune.testing.tiny import build_tiny

    experts = {name: settings.transformer for name in ("transformer", "transformer_2")}
    build_tiny(run.model, settings.family, settings.variant, **experts)
    published = resolve(settings.family).checkpoint(settings.variant)
    values = {
        "model": run.model,
        "objective": published.defaults.objective,
        "conditions": json.dumps(published.conditions),
        "samples": _samples(run.folder / "samples", settings),
        "cache": run.folder / "cache",
    }
    run.file.write_text(RUN.format(**values, **asdict(settings)))


def _samples(folder: Path, settings: Settings) -> Path:
    """The folder of the bundled clips or pictures, or a new one with some of them."""
    import omnitune
    from omnitune.testing.tiny import CAPTIONS

    kind, suffix = ("pictures", "png") if settings.frames == 1 else ("clips", "mp4")
    bundled = Path(omnitune.__file__).parent / "assets" / kind / "train"
    if settings.num_samples is None:
        return bundled
    folder.mkdir()
    for path in sorted(bundled.glob(f"*.{suffix}"))[: settings.num_samples]:
        shutil.copy(path, folder)
        (folder / path.name).with_suffix(".txt").write_text(CAPTIONS[0])
    return folder


if __name__ == "__main__":
    _write(TinyRun(Path(sys.argv[1])), Settings(**json.loads(sys.argv[2])))
