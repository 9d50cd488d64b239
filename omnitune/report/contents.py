"""What lies in a run folder, as the report needs it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config
from ..errors import UserError
from ..files import parse_json, parse_line

Record = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One generated picture or clip, or one answer."""

    path: Path
    prompt: str
    seed: int
    size: str
    settings: str
    """How it was generated, in words."""


@dataclass(frozen=True)
class Contents:
    """A run folder, read."""

    folder: Path
    yaml: str
    """run.yaml as it stands."""
    config: Record
    """The same, parsed."""
    manifest: Record
    metrics: list[Record]
    items: list[Record]
    samples: dict[int, list[Sample]]
    """By step, ascending."""
    results: list[Record]
    checkpoints: list[int]
    """Steps of the complete ones, ascending."""
    weights: list[Path]
    """Files of the exported results, relative to the folder."""
    notes: list[str]
    """What was found incomplete and left out."""

    @property
    def name(self) -> str:
        return self.stated("name") or self.folder.resolve().name

    def stated(self, *keys: str) -> Any:
        """A value of run.yaml; None if it is not there."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def column(self, key: str) -> list[Any]:
        """A value of every step that has it."""
        return [record[key] for record in self.metrics if key in record]


def read_contents(folder: Path) -> Contents:
    """Read what there is; only run.yaml has to be there."""
    if not (folder / "run.yaml").is_file():
        raise UserError(f"{folder}: no run.yaml in it; give the folder of a run, as runs/NAME")
    notes: list[str] = []
    return Contents(
        folder=folder,
        yaml=(folder / "run.yaml").read_text(encoding="utf-8", errors="replace"),
        config=config.read(folder / "run.yaml").data,
        manifest=_read_json(folder / "manifest.json", {}),
        metrics=_read_lines(folder / "metrics.jsonl", notes),
        items=_read_lines(folder / "data.jsonl", notes),
        samples=_read_samples(folder / "samples", notes),
        results=_read_json(folder / "results.json", []),
        checkpoints=[
            step for step, path in _steps(folder / "checkpoints").items() if (path / "COMPLETE").is_file()
        ],
        weights=sorted(
            p.relative_to(folder)
            for top in ("weights", "weights-raw")
            for p in folder.glob(f"{top}/**/*")
            if p.is_file()
        ),
        notes=notes,
    )


def _steps(folder: Path) -> dict[int, Path]:
    """The folders step-N in a folder by step, ascending."""
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*"))
    found = {int(match[1]): path for match, path in matches if match}
    return dict(sorted(found.items()))


def _read_json(path: Path, otherwise: Any) -> Any:
    try:
        found = parse_json(path.read_bytes())
        if otherwise is not None and type(found) is not type(otherwise):
            raise ValueError(f"it holds a {type(found).__name__}")
        return found
    except FileNotFoundError:
        return otherwise
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({error}); restore the file, or delete it to leave it out"
        ) from None


def _read_lines(path: Path, notes: list[str]) -> list[Record]:
    """Objects up to the first line that is none: a kill leaves the last one half-written."""
    if not path.is_file():
        return []
    records = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if (record := parse_line(line)) is None:
                notes.append(f"{path.name} ends at line {number}, which is only half written.")
                break
            records.append(record)
    return records


def _read_samples(folder: Path, notes: list[str]) -> dict[int, list[Sample]]:
    found = {}
    for step, step_folder in _steps(folder).items():
        try:
            described = _read_json(step_folder / "samples.json", [])
            samples = [_sample(step_folder, record) for record in described]
        except (UserError, TypeError, LookupError):
            described = []
        if not described:
            notes.append(f"samples/{step_folder.name} has no samples.json, so its samples are left out.")
            continue
        for sample in samples:
            if not sample.path.is_file():
                notes.append(f"samples/{step_folder.name}/{sample.path.name} is missing.")
        found[step] = [s for s in samples if s.path.is_file()]
    return found


def _sample(folder: Path, record: Record) -> Sample:
    if "answer" in record:
        about = f"about {Path(record['image']).name}" if record["image"] else "about no picture"
        return Sample(folder / record["file"], record["prompt"], 0, "", about)
    settings = f"seed {record['seed']} · guidance {record['guidance']} · {record['steps']} denoising steps"
    return Sample(folder / record["file"], record["prompt"], record["seed"], record["size"], settings)
