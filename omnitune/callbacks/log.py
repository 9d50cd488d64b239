"""metrics.jsonl, draws.jsonl, and what the terminal shows."""

import json
import math
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..files import write_text
from ..progress import Progress
from .base import Callback, Metrics

if TYPE_CHECKING:
    from ..trainer import Trainer

HOST_READ_SECONDS = 1.0
"""Device scalars are read in bunches this far apart, so that steps do not wait for the host."""


def cut_back(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that a kill left half-written."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] <= step:
            kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))


class Log(Callback):
    """Writes one object a step, in bunches; shows progress on the main rank."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pending: list[Metrics] = []
        self.last_read, self.diverged = 0.0, False
        self.streams: dict[str, IO[str]] = {}
        self.progress: Any = None

    def on_start(self, trainer: "Trainer") -> None:
        if not trainer.mesh.main:
            return
        for name in ("metrics", "draws"):
            cut_back(self.folder / f"{name}.jsonl", trainer.step)
        self.progress = Progress(trainer.step, trainer.last_step)

    def on_step(self, trainer: "Trainer", metrics: Metrics) -> None:
        if trainer.mesh.main:
            self.pending.append(metrics)
            if time.monotonic() - self.last_read > HOST_READ_SECONDS or trainer.step == trainer.last_step:
                self.flush()
                trainer.stop_wish |= self.diverged  # all ranks stop, and tell why instead of saving

    def on_save(self, trainer: "Trainer") -> None:
        self.flush(sync=True)

    def on_close(self, trainer: "Trainer") -> None:
        self.close()

    def flush(self, sync: bool = False) -> None:
        import os

        self.last_read = time.monotonic()
        for metrics in self.pending:
            draws = metrics.pop("draws", None)
            record = {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}
            self.diverged |= not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]))
            self._write("metrics", record)
            if draws is not None:
                self._write("draws", draws)
            if self.progress:
                self.progress.update(record)
        self.pending = []
        for stream in self.streams.values():
            stream.flush()
            if sync:
                os.fsync(stream.fileno())

    def _write(self, name: str, record: dict[str, Any]) -> None:
        if name not in self.streams:
            self.streams[name] = (self.folder / f"{name}.jsonl").open("a")
        self.streams[name].write(json.dumps(record) + "\n")

    def close(self) -> None:
        try:
            self.flush()
            for stream in self.streams.values():
                stream.close()
        finally:  # a full disk must not leave the terminal to the bar
            self.streams = {}
            if self.progress:
                self.progress.close()
                self.progress = None
