"""What long work tells the user: single lines, and a bar on a terminal or a line a minute elsewhere."""

import sys
import time
from typing import Any

SECONDS = 60
"""Between lines where there is no terminal."""


def say(line: str) -> None:
    """Tell the user one line."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal; a line a minute elsewhere."""

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done, self.first = what, total, done, done
        self.start = self.said = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(what, total=total, completed=done, note="")

    def update(self, done: int, note: str = "", now: bool = False) -> None:
        """Show how much is done; `now` prints the line whatever the time."""
        self.done = done
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
        elif now or time.monotonic() - self.said > SECONDS:
            self.said = time.monotonic()
            left = (self.said - self.start) / max(1, done - self.first) * (self.total - done)
            say("  ".join(filter(None, [f"{self.what} {done}/{self.total}", note, f"{clock(left)} left"])))

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
