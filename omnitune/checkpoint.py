"""Checkpoints: a folder a step, complete or not there, found again after any kill."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import hash_file, read_object, sync, write_json
from .options import option

if TYPE_CHECKING:
    from torch import Tensor

    from .parallel.mesh import Mesh

COMPLETE, STATE = "COMPLETE", "state.json"


@option
class Checkpoints:
    """When the state of a run is saved; the last step is saved always."""

    every: int = 500
    """Steps between checkpoints."""
    keep: int | None = 3
    """How many are kept, the newest; null: all."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be 1 or more, not {self.every}; the last step is saved always")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep must be 1 or more, or null for all, not {self.keep}")


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    folder: Path
    step: int

    @property
    def tensors(self) -> Path:
        return self.folder / "tensors"

    def state(self) -> dict[str, Any]:
        return read_object(self.folder / STATE)

    def fault(self) -> str | None:
        """What is wrong with it, or None if every file is as COMPLETE says."""
        try:
            listed = read_object(self.folder / COMPLETE)
        except (OSError, UserError):
            return "it is not complete"
        if STATE not in listed or not all(isinstance(one, list) and len(one) == 2 for one in listed.values()):
            return f"{COMPLETE} does not list its files"
        for name, (size, digest) in listed.items():
            file = self.folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if hash_file(file) != digest:
                return f"{name} does not have the bytes that were written"
        return None


def list_saved(folder: Path) -> list[Saved]:
    """Checkpoints of a run, oldest first, complete or not."""
    found = []
    for path in sorted(folder.glob("step-*")) if folder.is_dir() else []:
        if path.is_dir() and not path.is_symlink() and (match := re.fullmatch(r"step-(\d+)", path.name)):
            found.append(Saved(path, int(match[1])))
    return found


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not."""
    notes: list[str] = []
    for saved in reversed(list_saved(folder)):
        if (fault := saved.fault()) is None:
            return saved, notes
        notes.append(f"{saved.folder} is passed over: {fault}")
    return None, notes


def save(folder: Path, step: int, tensors: "dict[str, Tensor]", state: dict[str, Any], mesh: "Mesh") -> Saved:
    """Write a checkpoint of all ranks under a temporary name: COMPLETE comes last, then the name."""
    from .parallel.state import save_tensors

    saved = Saved(folder / f"step-{step:08d}", step)
    temporary = folder / f".step-{step:08d}.tmp"

    def start() -> None:
        for old in folder.glob(".step-*.tmp"):
            shutil.rmtree(old)
        temporary.mkdir(parents=True)

    def finish() -> None:
        write_json(temporary / STATE, state)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        listed = {str(p.relative_to(temporary)): (p.stat().st_size, hash_file(p)) for p in files}
        for file in files:
            sync(file)
        write_json(temporary / COMPLETE, listed)
        if saved.folder.exists():
            shutil.rmtree(saved.folder)
        temporary.rename(saved.folder)
        sync(folder)
        _point(folder / "latest", saved.folder.name)

    mesh.on_main(start)
    try:
        save_tensors(temporary / "tensors", tensors, mesh)
        mesh.on_main(finish)
    finally:
        if mesh.main:
            shutil.rmtree(temporary, ignore_errors=True)
    return saved


def prune(folder: Path, keep: int | None, before: int, step: int) -> None:
    """Delete what is beyond `keep` of the checkpoints up to `step`, the one just saved.

    Others later than `before`, where this run was saved or restored last, were passed over at the start:
    the damaged ones go now, or they would count as the newest.
    """
    kept = []
    for saved in list_saved(folder):
        if saved.step > before and saved.step != step and saved.fault() is not None:
            shutil.rmtree(saved.folder)
        elif saved.step <= step:
            kept.append(saved)
    for old in kept[:-keep] if keep else []:
        shutil.rmtree(old.folder)


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(".latest.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
