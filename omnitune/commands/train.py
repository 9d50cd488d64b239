"""A run folder from start to end: its identity, its data, its checkpoints, its results."""

import fcntl
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint, config
from ..callbacks.base import Callback
from ..callbacks.ema import EmaCallback
from ..callbacks.log import DrawsLog, MetricsLog, ProgressBar
from ..callbacks.sample import SampleCallback
from ..config.identity import check_base, check_data, check_identity, data_lines, manifest
from ..data.captions.index import Index
from ..data.encode import fill
from ..data.sizes import Bucket
from ..errors import Stopped, UserError, shared
from ..export.weights import carried_names, export, load_trained
from ..files import digest, write_json, write_text
from ..memory.checkpointing import checkpoint_blocks
from ..parallel.state import load_whole
from ..progress import say
from ..resolve import Job, place
from ..trainable.adapters import param_groups
from ..trainer import Trainer

if TYPE_CHECKING:
    from ..config.run import Part, Run
    from ..families.base import Family
    from ..parallel.mesh import Mesh
    from ..trainable.rules import Claims

RUNS = Path("runs")


def make_job(run: "Run", earlier: "Claims | None" = None) -> Job:
    """Work out a run, as its last phase; one error tells every mistake, except those of its data."""
    return worked_out(run, earlier)[-1][1]


def worked_out(run: "Run", earlier: "Claims | None" = None) -> "list[tuple[Part, Job]]":
    """Each phase of a run and what it comes down to; one error tells every mistake of the first with any."""
    found: list[tuple[Part, Job]] = []
    for part in run.parts():
        job = Job(part.run, config.validate_options, earlier)
        job.mistakes.raise_all()
        found.append((part, job))
        earlier = job.claims
    return found


def run_folder(run: "Run") -> Path:
    return RUNS / run.name


def read_run(folder: Path) -> "Run":
    """The run that a folder holds."""
    if not (folder / "run.yaml").is_file():
        raise UserError(f"{folder}: no run.yaml in it; give the folder of a run, as runs/NAME")
    return config.validate(config.read(folder / "run.yaml"))


def prepare(
    run: "Run", mesh: "Mesh", folder: Path | None = None, verify: bool = False
) -> "tuple[list[tuple[Part, Job]], Index]":
    """Work out a run and its data, to go into a folder; one error on all ranks tells every mistake."""
    first = Job(run.parts()[0].run, config.validate_options)

    def find() -> Index:
        _note_identity(first, run, folder)
        return first.index(verify)

    index = mesh.together(find)
    mesh.each(first.mistakes.raise_all)
    parts = [(run.parts()[0], first)]
    if run.phases:
        parts = mesh.each(lambda: worked_out(run))
        for _, job in parts[1:]:
            job.found = first.found
    return parts, index


def refuse(run: "Run", mistake: UserError, folder: Path | None) -> None:
    """Raise a mistake, and with it all else that is wrong with a run."""
    job = Job(run.parts()[0].run, config.validate_options)
    job.mistakes.errors.insert(0, mistake)
    _note_identity(job, run, folder)
    job.deal()


def _note_identity(job: Job, run: "Run", folder: Path | None) -> None:
    if folder is not None:
        with job.mistakes.noted():
            check_identity(run, folder)


def sample_bucket(job: Job, index: Index) -> Bucket | None:
    """The size that is sampled: as stated, or the data's largest; None where samples are answers."""
    return job.sample_size() or job.material.largest(index)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder alone; the lock lies beside it, so that a refused run leaves nothing in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as handle:
        try:
            # Not flock, which processes that read data would hold for a killed run until they end.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process trains here; wait for it, or choose another name="
            ) from None
        yield


def train(run: "Run", mesh: "Mesh") -> Path:
    """Train a run, or go on with it; returns its folder."""
    folder = run_folder(run)
    with ExitStack() as held:
        mesh.together(lambda: held.enter_context(locked(folder)))
        return _train(run, folder, mesh)


def _train(run: "Run", folder: Path, mesh: "Mesh") -> Path:
    speak: Callable[[str], None] = say if mesh.main else lambda line: None
    parts, index = prepare(run, mesh, folder)
    job = parts[0][1]
    for note in index.notes:
        speak(note)
    bucket = sample_bucket(job, index)
    mesh.together(lambda: job.shape.check_weights(list(job.shape.components)))
    job.share_weights(mesh)
    base, data = mesh.together(lambda: _fingerprints(job, index))
    saved = mesh.together(lambda: _find(folder, speak))
    if saved:
        stated = saved.state()
        mesh.together(lambda: check_data(index, stated, folder))
        mesh.together(lambda: check_base(base, stated, run, folder))
    ready = False
    for number, (part, own) in enumerate(parts):
        last = number + 1 == len(parts)
        if saved and saved.step >= part.end and not last:
            continue
        own.weights = job.weights
        filled = fill(own, index, mesh)
        if filled.encoded:
            speak(str(filled))
        if not filled.complete and not ready:  # told once: a large set takes minutes to tokenize
            for note in mesh.together(lambda: index.caption_notes(job.shape.cut_captions)):
                speak(note)
        adopted = saved if saved and number and saved.step == part.start else None
        state = {"base": base, "data": data}
        trainer, family = build_trainer(
            own, index, mesh, folder, bucket, state, part.start, adopted, run.steps
        )
        # Not earlier: a file that cannot be decoded shows while the cache fills, and leaves no half run.
        if mesh.main and not ready:
            write_text(folder / "run.yaml", config.dump(run))
            write_json(folder / "manifest.json", manifest(run, base, data, mesh))
            write_text(folder / "data.jsonl", data_lines(index))
        ready = True
        if saved and adopted is None:
            trainer.restore(saved)
        if saved or number:
            speak(_going_on(folder, trainer.step, run, number))
        with _signals(trainer):
            trainer.fit()
        if not last and any(mesh.gather(trainer.stop_wish)):  # since the last step's end
            raise shared(Stopped(f"stopped after step {part.end} of {run.steps}; the same command goes on"))
        saved = checkpoint.Saved(folder / "checkpoints" / f"step-{part.end:08d}", part.end)
        if not last:
            del trainer, family
            mesh.forget()
    finish(own, trainer, family, folder)
    return folder


def _going_on(folder: Path, step: int, run: "Run", number: int) -> str:
    if step >= run.steps:
        way_on = "" if run.phases else "; a larger schedule.steps extends it"
        return f"{folder} is trained to step {step} already{way_on}"
    phase = f", phase {number + 1} of {len(run.phases)}" if run.phases else ""
    return f"going on after step {step} of {run.steps}{phase}"


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
    job: Job,
    index: Index,
    mesh: "Mesh",
    folder: Path,
    bucket: Bucket | None,
    state: dict[str, Any],
    start: int = 0,
    adopted: checkpoint.Saved | None = None,
    total: int | None = None,
) -> "tuple[Trainer, Family]":
    """Load what a step needs, place it, and put the loop around it.

    A phase begins at step `start`, with what the checkpoint `adopted` at the end of the one before it holds;
    all phases together have `total` steps.
    """
    run = job.run
    family, compute = mesh.each(lambda: job.trained_family(str(mesh.device)))
    if adopted is not None:
        load_trained(family, load_whole(adopted.tensors, mesh), average=False)
    if run.memory.checkpointing == "full":
        checkpoint_blocks([b for blocks in job.learning_blocks(family).values() for b in blocks])
    place(family, compute, mesh)
    groups = param_groups(family.components, job.claims, run.optimizer.lr, run.optimizer.weight_decay)
    ema = EmaCallback(run.ema) if run.ema else None
    callbacks: list[Callback] = [
        MetricsLog(),
        DrawsLog(),
        ProgressBar(),
        *([ema] if ema else []),
        SampleCallback(run.validation, family, bucket, folder / "samples"),
        *(options.build() for options in run.callbacks),
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
        start=start,
        total=total,
        carried=carried_names(family, job.claims),
    )
    if ema:
        ema.attach(trainer.weights())
    if adopted is not None:
        trainer.load_states(adopted)
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
    from ..report import write_report

    with trainer.averaged_weights():
        export(family, job.claims.ever, trainer.mesh, folder / "weights")
    if job.run.ema:
        export(family, job.claims.ever, trainer.mesh, folder / "weights-raw")
    if trainer.mesh.main:
        write_report(folder)
        say(f"weights: {folder / 'weights'}\nreport: {folder / 'report.html'}")
