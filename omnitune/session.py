"""A run folder from start to end: its identity, its data, its checkpoints, its results."""

import fcntl
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checkpoint, config
from .callbacks.base import Callback
from .callbacks.ema import EmaCallback
from .callbacks.log import Log
from .callbacks.sample import SampleCallback, parse_bucket
from .data.index import Index
from .files import digest, write_json, write_text
from .job import Job, place
from .precompute import fill
from .trainable import param_groups
from .trainer import Trainer
from .types import Bucket, UserError
from .weights import export

if TYPE_CHECKING:
    from .config import Run
    from .families.base import Family
    from .parallel.mesh import Mesh

RUNS = Path("runs")


def say(line: str) -> None:
    """One line for the user."""
    print(line, file=sys.stderr, flush=True)


def make_job(run: "Run") -> Job:
    return Job(run, config.validate_options)


def run_folder(run: "Run") -> Path:
    return RUNS / run.name


def read_run(folder: Path) -> "Run":
    """The run that a folder holds."""
    if not (folder / "run.yaml").is_file():
        raise UserError(f"{folder}: no run.yaml in it; give the folder of a run, as runs/NAME")
    return config.validate(config.read(folder / "run.yaml"))


def sample_bucket(run: "Run", job: Job, buckets: Sequence[Bucket]) -> Bucket:
    """The size that is sampled: as stated, or the data's largest."""
    if run.validation.size is None:
        return max(buckets, key=lambda b: b.frames * b.height * b.width)
    bucket = parse_bucket(run.validation.size, "validation.size")
    check_size(bucket, job, "validation.size")
    return bucket


def check_size(bucket: Bucket, job: Job, where: str) -> None:
    limits = job.shape.limits
    height, width = (
        max(1, round(x / limits.spatial)) * limits.spatial for x in (bucket.height, bucket.width)
    )
    frames = max(0, round((bucket.frames - 1) / limits.temporal)) * limits.temporal + 1
    nearest = Bucket(frames, height, width)
    if nearest != bucket:
        raise UserError(
            f"{where}: {bucket} is not a size that {job.family_class.name} takes; the nearest is {nearest}"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder alone; the lock lies beside it, so that a refused run leaves nothing in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process trains here; wait for it, or choose another name="
            ) from None
        yield


def check_identity(run: "Run", folder: Path) -> None:
    """Refuse a folder whose run learns something else."""
    if not (folder / "run.yaml").is_file():
        return
    stored = config.identity(config.as_data(read_run(folder)))
    mine = config.identity(config.as_data(run))
    differing = sorted(k for k in stored.keys() | mine.keys() if stored.get(k) != mine.get(k))
    if differing:
        lines = "; ".join(f"{k} {stored.get(k)!r} there, {mine.get(k)!r} here" for k in differing[:5])
        raise UserError(
            f"{differing[0]}: {folder} holds a run that learns something else ({lines}); "
            "choose another name=, delete that folder, or go back to its settings"
        )


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
    stored = {r["id"]: r["fingerprint"] for r in map(json.loads, lines.read_text().splitlines())}
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

    packages = ("omnitune", "torch", "diffusers", "transformers", "peft", "safetensors", "av", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "identity": config.identity_hash(run),
        "base_weights": base,
        "data": data,
        "seed": run.seed,
        "device": torch.cuda.get_device_name()
        if mesh.device.type == "cuda"
        else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "ranks": mesh.world,
    }


def _commit() -> str | None:
    """The commit of the omnitune sources, where they are a checkout."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def train(run: "Run", mesh: "Mesh") -> Path:
    """Train a run, or go on with it; returns its folder."""
    folder = run_folder(run)
    with ExitStack() as held:
        mesh.together(lambda: held.enter_context(locked(folder)))
        mesh.together(lambda: check_identity(run, folder))
        return _train(run, folder, mesh)


def _train(run: "Run", folder: Path, mesh: "Mesh") -> Path:
    speak: Callable[[str], None] = say if mesh.main else lambda line: None
    job = make_job(run)
    index = mesh.together(lambda: job.index())
    for note in index.notes:
        speak(note)
    bucket = sample_bucket(run, job, index.buckets)
    mesh.together(lambda: job.shape.check_weights(list(job.shape.components)))
    job.share_weights(mesh)
    base, data = mesh.together(lambda: _fingerprints(job, index))
    saved = mesh.together(lambda: _find(folder, speak))
    if saved:
        mesh.together(lambda: check_data(index, saved.state(), folder))
        mesh.together(lambda: check_base(base, saved.state(), run, folder))
    filled = fill(job, index, mesh)
    if filled.encoded:
        speak(str(filled))
    trainer, family = build_trainer(job, index, mesh, folder, bucket, {"base": base, "data": data})
    # Not earlier: a file that cannot be decoded shows while the cache fills, and leaves no half run.
    if mesh.main:
        write_text(folder / "run.yaml", config.dump(run))
        write_json(folder / "manifest.json", manifest(run, base, data, mesh))
        write_text(folder / "data.jsonl", data_lines(index))
    if saved:
        trainer.restore(saved)
        over = saved.step >= run.schedule.steps
        speak(
            f"{folder} is trained to step {saved.step} already; a larger schedule.steps extends it"
            if over
            else f"going on after step {saved.step} of {run.schedule.steps}"
        )
    with _signals(trainer):
        trainer.fit()
    finish(job, trainer, family, folder)
    return folder


def _fingerprints(job: Job, index: Index) -> tuple[str, str]:
    return job.base, digest(*(f"{k} {v}" for k, v in sorted(index.fingerprints().items())))


def _find(folder: Path, speak: Callable[[str], None]) -> checkpoint.Saved | None:
    saved, notes = checkpoint.newest(folder / "checkpoints")
    for note in notes:
        speak(note)
    if notes and saved is None:
        speak(f"no checkpoint of {folder} is whole: it starts again from step 0")
    return saved


def build_trainer(
    job: Job, index: Index, mesh: "Mesh", folder: Path, bucket: Bucket, state: dict[str, Any]
) -> "tuple[Trainer, Family]":
    """Load what a step needs, place it, and put the loop around it."""
    run = job.run
    family, compute = job.trained_family(str(mesh.device))
    place(family, compute, mesh)
    groups = param_groups(family.components, job.claims, run.optimizer.lr, run.optimizer.weight_decay)
    ema = EmaCallback(run.ema) if run.ema else None
    callbacks: list[Callback] = [
        Log(folder),
        *([ema] if ema else []),
        SampleCallback(run.validation, family, bucket, folder / "samples"),
    ]
    trainer = Trainer(
        family=family,
        objective=run.objective,
        conditions=run.conditions,
        stages=job.stages(family, job.live_names),
        batches=job.batches(index, mesh),
        optimizer=run.optimizer.build(groups),
        max_norm=run.optimizer.max_grad_norm,
        schedule=run.schedule,
        mesh=mesh,
        folder=folder,
        seed=run.seed,
        checkpoints=run.checkpoint,
        callbacks=callbacks,
        state=state,
        record_draws=run.tracking.draws,
        num_workers=job.num_workers,
    )
    if ema:
        ema.attach(trainer.weights())
    return trainer, family


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT let the step finish; a second SIGINT stops at once."""

    def wish(number: int, frame: Any) -> None:
        trainer.stop_wish = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, wish) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(job: Job, trainer: Trainer, family: "Family", folder: Path) -> None:
    """Export what was trained, and write the report."""
    from .report import write_report

    with trainer.served():
        export(family, job.claims, trainer.mesh, folder / "weights")
    if job.run.ema:
        export(family, job.claims, trainer.mesh, folder / "weights-raw")
    if trainer.mesh.main:
        write_report(folder)
        say(f"weights: {folder / 'weights'}\nreport: {folder / 'report.html'}")
