"""What long work tells the user: single lines, and a bar on a terminal or a line a minute elsewhere."""

import os
import sys
import threading
import time
from typing import Any

CLEAR = "\r\033[K"
"""Takes back what the terminal's line shows."""
SECONDS = 60
"""Between lines where there is no terminal."""


def say(line: str) -> None:
    """Tell the user one line."""
    print(f"{CLEAR}{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


class Working:
    """Shows on a terminal what takes its time, and for how many seconds; elsewhere nothing.

    The line goes when it ends: by `stop`, before a bar takes its place, or with the block.
    """

    def __init__(self, what: str):
        self.what, self.over = what, threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Working":
        if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
            self.thread = threading.Thread(target=self._show, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.over.set()
        if self.thread:
            self.thread.join()
            self.thread = None

    def _show(self) -> None:
        start, shown = time.monotonic(), self.what
        while True:
            print(f"{CLEAR}{shown}", end="", file=sys.stderr, flush=True)
            if self.over.wait(1):
                break
            shown = f"{self.what} {clock(time.monotonic() - start)}"
        print(CLEAR, end="", file=sys.stderr, flush=True)


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
