"""What a run was made of: written beside its results, and compared before it goes on."""

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import list_saved
from ..data.dataset import Index
from ..errors import UserError
from ..families import resolve
from ..files import digest, read_jsonl, read_object
from ..optim import Schedule
from ..options import NOT_LEARNED, annotations_of, plain
from ..progress import say
from .validate import stored_run, validate_options

if TYPE_CHECKING:
    from ..parallel.mesh import Mesh
    from .run import Run


def check_identity(run: "Run", folder: Path) -> None:
    """Refuse a folder whose run learns something else."""
    file = folder / "run.yaml"
    if not file.is_file():
        _check_manifest(run, folder)
        return
    stored = learned_settings(stored_run(file))
    mine = learned_settings(run)
    differing = sorted(k for k in stored.keys() | mine.keys() if stored.get(k) != mine.get(k))
    if differing:
        lines = "; ".join(f"{k} {stored.get(k)!r} there, {mine.get(k)!r} here" for k in differing[:5])
        raise UserError(
            f"{differing[0]}: {folder} holds a run that learns something else ({lines}); "
            "choose another name=, delete that folder, or go back to its settings"
        )


def _check_manifest(run: "Run", folder: Path) -> None:
    """Refuse checkpoints without a run.yaml, unless the manifest says that they are of this run."""
    if not list_saved(folder / "checkpoints"):
        return
    manifest = folder / "manifest.json"
    stored = read_object(manifest).get("identity") if manifest.is_file() else None
    if stored != identity_hash(run):
        other = "is of other settings" if stored else "does not tell either"
        raise UserError(
            f"name: {folder} has checkpoints and no run.yaml, which tells what they learned, and {manifest} "
            f"{other}; bring run.yaml back, choose another name=, or delete that folder"
        )


def as_recorded(run: "Run", folder: Path, reached: int) -> "Run":
    """The run with the schedule that its folder has of it: with every change of its steps.

    Raises UserError where the rate would jump at the step that is reached.
    """
    file, record = folder / "run.yaml", folder / "manifest.json"
    if run.phases:  # their schedules do not change
        return run
    if file.is_file():
        before = stored_run(file).schedule
    elif record.is_file() and "schedule" in (found := read_object(record)):
        before = validate_options(Schedule, found["schedule"], f"{record}: schedule")
    else:
        return run
    return replace(run, schedule=run.schedule.after(before, reached))


def check_data(index: Index, state: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other data than the checkpoint was trained on."""
    mine = index.fingerprints()
    if state["data"] == digest(*(f"{k} {v}" for k, v in sorted(mine.items()))):
        return
    lines = folder / "data.jsonl"
    if not lines.is_file():
        raise UserError(
            f"data.sources: the data is not what {folder} was trained on, and {lines}, which tells the "
            "difference, is missing; bring the data back, or start another run with name="
        )
    stored = {row["id"]: row["fingerprint"] for row in read_jsonl(lines, "id", "fingerprint")}
    changed = [i for i in mine if i in stored and stored[i] != mine[i]]
    kinds = {
        "changed": changed,
        "gone": [i for i in stored if i not in mine],
        "new": [i for i in mine if i not in stored],
    }
    told = "; ".join(f"{kind}: {', '.join(ids[:5])}{f' and {len(ids) - 5} more' if ids[5:] else ''}"
                     for kind, ids in kinds.items() if ids)  # fmt: skip
    raise UserError(
        f"data.sources: the data is not what {folder} was trained on ({told}); bring it "
        "back, or start another run "
        f"with name=, from this one's weights by init_from={folder}/weights"
    )


def with_stored_ids(index: Index, folder: Path) -> Index:
    """Give items the ids that a run folder knows them by, where data of the same contents have other names.

    Ids decide the order of samples and their draws, so the run goes on bit for bit.
    """
    lines, mine = folder / "data.jsonl", index.fingerprints()
    try:
        rows = read_jsonl(lines, "id", "fingerprint") if lines.is_file() else []
    except UserError:  # told by `check_data` if the data differ
        return index
    stored = {row["id"]: row["fingerprint"] for row in rows}
    if stored.keys() == mine.keys() or sorted(stored.values()) != sorted(mine.values()):
        return index
    names = [sorted(prints, key=lambda name: (prints[name], name)) for prints in (stored, mine)]
    now = dict(zip(*names, strict=True))
    places = {name: i for i, name in enumerate(mine)}
    old = next(name for name in now if now[name] != name)
    number = sum(name != other for name, other in now.items())
    say(
        f"data.sources: {number} of {len(now)} samples have new names and the same contents "
        f"({now[old]}, which {folder} knows as {old}); the run goes on with the old names"
    )
    return index.renamed([places[now[name]] for name in stored], list(stored))


def check_base(fingerprint: str, state: Mapping[str, Any], run: "Run", folder: Path) -> None:
    if state["base"] != fingerprint:
        raise UserError(
            f"model.path: the weights at {run.model.path} are not those that {folder} was started from; "
            "bring those back, or start another run with name="
        )


def data_lines(index: Index) -> str:
    prints = index.fingerprints()
    rows = [
        {"id": item.id, "bucket": str(bucket), "caption": item.caption, "fingerprint": prints[item.id]}
        for item, bucket in zip(index.items, index.buckets, strict=True)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def manifest(run: "Run", base: str, data: str, mesh: "Mesh") -> dict[str, Any]:
    """What decides the result besides the configuration."""
    from importlib.metadata import version

    import torch

    from ..parallel.device import device_name

    packages = ("omnitune", "torch", "diffusers", "transformers", "peft", "safetensors", "av", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "identity": identity_hash(run),
        "schedule": plain(run.schedule),
        "base_weights": base,
        "data": data,
        "seed": run.seed,
        "device": device_name(mesh.device),
        "threads": torch.get_num_threads(),
        "ranks": mesh.world,
    }


def _commit() -> str | None:
    """The commit of the omnitune sources, where they are a checkout."""
    here = Path(__file__).parents[1]
    if not (here.parent / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def learned_settings(run: "Run") -> dict[str, Any]:
    """What of a run changes learning, as {dotted key: value}.

    Model, data and init_from are not among it: they are compared by their contents.
    """
    settings = plain(run, learned_only=True)
    if run.model.options:
        notes = annotations_of(resolve(run.model.family).Options)
        kept = {
            name: value for name, value in run.model.options.items() if NOT_LEARNED not in notes.get(name, ())
        }
        settings["model"]["options"] = kept
    found = flat(settings)
    if run.data.drawn:
        # Cached pixels are one of N variants, live ones are drawn anew each time.
        found["data.cache"] = "null" if run.data.cache is None else "a folder"
    return found


def identity_hash(run: "Run") -> str:
    """Hash what of a run changes learning."""
    return blake2b(json.dumps(learned_settings(run), sort_keys=True).encode(), digest_size=16).hexdigest()


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Spell nested values as {dotted key: value}; an empty list or mapping is a value."""
    if isinstance(value, dict) and value:
        items = {f"{prefix}.{k}" if prefix else str(k): v for k, v in value.items()}
    elif isinstance(value, list) and value:
        items = {f"{prefix}.{i}": v for i, v in enumerate(value)}
    else:
        return {prefix: value}
    return {k: v for name, child in items.items() for k, v in flat(child, name).items()}
