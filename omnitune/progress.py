"""Progress of long work: a bar on a terminal, a line a minute elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class Progress:
    """A bar on a terminal; a line a minute, and at the end, elsewhere."""

    def __init__(self, step: int, total: int):
        self.total, self.first, self.said = total, step + 1, time.monotonic()
        self.seconds = 0.0  # a step, averaged over about the last twenty
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("train", total=total, completed=step, note="")

    def update(self, record: dict[str, Any]) -> None:
        memory = record["peak_memory_bytes"] / 2**30
        rate = record["samples_per_second"]
        self.seconds += (record["seconds"] - self.seconds) * (0.05 if self.seconds else 1)
        note = f"loss {record['loss']:.4f}  {rate:.2f} samples/s  {memory:.1f} GiB"
        if self.bar:
            self.bar.update(self.task, completed=record["step"], note=note)
            return
        now = time.monotonic()
        if now - self.said > 60 or record["step"] in (self.first, self.total):
            self.said = now
            left = clock(self.seconds * (self.total - record["step"]))
            print(f"step {record['step']}/{self.total}  {note}  {left} left", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def say(line: str) -> None:
    """Tell the user one line."""
    print(line, file=sys.stderr, flush=True)
