"""The folder of a run: its lock, its checkpoints, what it was made of."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from . import checkpoint, config
from .errors import UserError
from .progress import say

if TYPE_CHECKING:
    from .config.run import Run

RUNS = Path("runs")
_HELD: set[Path] = set()
"""Locks that this process holds."""


def run_folder(run: "Run") -> Path:
    """Where a run keeps everything that it makes."""
    return RUNS / run.name


def read_run(folder: Path) -> "Run":
    """Read the run that a folder holds."""
    if not (folder / "run.yaml").is_file():
        raise UserError(f"{folder}: no run.yaml in it; give the folder of a run, as runs/NAME")
    return config.stored_run(folder / "run.yaml")


def read_averaged(folder: Path, raw: bool) -> "Run":
    """Read a run whose average, or else whose raw weights, are asked for."""
    run = read_run(folder)
    if raw and run.ema is None:
        raise UserError(f"--raw: {folder} keeps no average (ema), so its weights are raw; leave it out")
    return run


def check_free(out: Path | None) -> None:
    """Refuse a place for results that holds some: earlier results are never written over."""
    if out is not None and os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out: {out} is there already; name another place, or delete it")


def next_free(usual: Path) -> Path:
    """The usual place for results, with the first number behind it that is free: NAME, NAME-2, NAME-3..."""
    numbered = (usual.with_name(f"{usual.stem}-{number}{usual.suffix}") for number in count(2))
    return next(path for path in chain([usual], numbered) if not os.path.lexists(path))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder alone; the lock lies beside it, so that a refused run leaves nothing in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock").absolute()
    with lock.open("w") as handle:
        try:
            if lock in _HELD:  # lockf lets the threads of one process all in
                raise BlockingIOError
            # Not flock, which processes that read data would hold for a killed run until they end.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another run trains here; wait for it, or choose another name="
            ) from None
        _HELD.add(lock)
        try:
            yield
        finally:
            _HELD.remove(lock)


def newest_checkpoint(folder: Path) -> checkpoint.Saved | None:
    """Find the newest checkpoint that is whole, and tell the user of newer ones that are not."""
    saved, notes = checkpoint.newest(folder / "checkpoints")
    for note in notes:
        say(note)
    return saved


def find_checkpoint(folder: Path, step: int | None) -> checkpoint.Saved:
    """Find the checkpoint of a step, or the newest that is whole. Raises UserError if there is none."""
    if step is None:
        if (found := newest_checkpoint(folder)) is None:
            raise UserError(f"{folder}: no complete checkpoint in it; train it first")
        return found
    saved = checkpoint.list_saved(folder / "checkpoints")
    there = ", ".join(str(s.step) for s in saved) or "none"
    one = next((s for s in saved if s.step == step), None)
    if one is None:
        raise UserError(f"--checkpoint: {folder} has none of step {step}; there are: {there}")
    if fault := one.fault():
        raise UserError(f"--checkpoint: {one.folder} cannot be used: {fault}; there are: {there}")
    return one
