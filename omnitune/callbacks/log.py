"""metrics.jsonl, draws.jsonl, and what the terminal shows."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ..files import atomic, parse_line
from ..progress import Progress, say
from .base import Callback, Record, TrainerView


def cut_back(path: Path, step: int) -> None:
    """Drop lines of later steps, and those that are no record: a kill leaves the last one half-written."""
    if not path.is_file():
        return
    kept, damaged = [], 0
    *lines, half = path.read_bytes().split(b"\n")
    for line in [*lines, half]:
        record = parse_line(line)
        if record is None or not isinstance(record.get("step"), int):
            damaged += line is not half
        elif record["step"] <= step:
            kept.append(line)
    if damaged:
        say(f"{path}: {damaged} damaged lines are left out; the steps that they told of are missing there")
    with atomic(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))


def draws_of(record: Record) -> dict[str, Any] | None:
    """Sample ids and hashes of the random draws of a step, where the run records them."""
    return None if record.draws is None else {"step": record.step, **record.draws}


class JsonLog(Callback):
    """Writes one object a step to a file of the run's folder; nothing where `describe` gives None."""

    def __init__(self, name: str, describe: Callable[[Record], dict[str, Any] | None]):
        self.name, self.describe = name, describe
        self.file: IO[str] | None = None

    def on_start(self, trainer: TrainerView) -> None:
        self.path = trainer.folder / self.name
        if trainer.mesh.main:
            cut_back(self.path, trainer.step)

    def on_record(self, record: Record) -> None:
        found = self.describe(record)
        if found is not None:
            self.file = self.file or self.path.open("a", buffering=1)
            self.file.write(json.dumps(found) + "\n")

    def on_save(self, trainer: TrainerView) -> None:
        if self.file:
            self.file.flush()
            os.fsync(self.file.fileno())

    def on_close(self, trainer: TrainerView) -> None:
        if self.file:
            self.file.close()


class ProgressBar(Callback):
    """How far training is, on the terminal."""

    progress: Progress | None = None

    def on_start(self, trainer: TrainerView) -> None:
        if trainer.mesh.main:
            self.progress = Progress("step", trainer.last_step, trainer.step)

    def on_record(self, record: Record) -> None:
        memory = record.peak_memory_bytes / 2**30
        note = f"loss {record.loss:.4f}  {record.samples_per_second:.2f} samples/s  {memory:.1f} GiB"
        if progress := self.progress:
            now = record.step in (progress.first + 1, progress.total)
            progress.update(record.step, note, now)

    def on_close(self, trainer: TrainerView) -> None:
        if self.progress:
            self.progress.close()
