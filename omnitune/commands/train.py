"""Train a run from start to end: its data, its model, its checkpoints, its results."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import config
from ..callbacks.base import Callback, Record, checked_callbacks
from ..callbacks.ema import EmaCallback
from ..callbacks.log import JsonLog, ProgressBar, draws_of
from ..callbacks.sample import SampleCallback
from ..checkpoint import Saved, list_saved
from ..config.identity import (
    as_recorded,
    check_base,
    check_data,
    check_identity,
    data_lines,
    manifest,
    with_stored_ids,
)
from ..errors import Mistakes, Stopped, shared
from ..export.weights import carried_names, export
from ..files import digest, write_json, write_text
from ..model import set_up
from ..optim import build_optimizer
from ..parallel.mesh import Mesh
from ..progress import say
from ..resolve import Prepared, ResolvedRun, prepare
from ..run_folder import locked, newest_checkpoint, run_folder
from ..trainable.adapters import param_groups
from ..trainer import Trainer

if TYPE_CHECKING:
    from ..config.run import Run
    from ..data.cache import StageCache
    from ..data.dataset import Index
    from ..families.base import Family


@dataclass(frozen=True)
class TrainResult:
    """What a trained run left behind."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The exported result, which diffusers, transformers or peft loads."""
        return self.folder / "weights"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def train(run: "Run", *callbacks: Callback) -> TrainResult:
    """Train a run, or resume it, in this process; `callbacks` see every step, beside those it states.

    Started by torchrun or another launcher, the process is one of the run's ranks. Raises UserError for
    what is wrong with the run and Stopped, with a checkpoint saved, where a signal stops it.
    """
    checked_callbacks(callbacks)
    mesh = Mesh(run.parallel)
    try:
        return TrainResult(train_on(run, mesh, *callbacks))
    finally:
        mesh.close()


def train_on(run: "Run", mesh: Mesh, *callbacks: Callback) -> Path:
    """Train a run on a mesh; returns its folder. Every rank calls it."""
    folder = run_folder(run)
    with ExitStack() as held:
        mesh.on_main(lambda: held.enter_context(locked(folder)))
        check = partial(note_identity, run=run, folder=folder)
        prepared = prepare(run, mesh, check, partial(with_stored_ids, folder=folder))
        start = mesh.on_main(lambda: find_start(prepared, run, folder))
        if not run.phases and start.run.steps == run.steps:  # if not equal, nothing is left to train
            prepared.first.run = start.run
        for phase in start.phases_left(prepared.phases):
            cache = fill_cache(phase, prepared.index, start, mesh)
            family = set_up(phase, mesh, start.of_phase_before(phase), training=True)
            trainer = build_trainer(
                phase, family, prepared.index, cache, mesh, folder, start.state, *callbacks
            )
            write_record(folder, prepared.index, start, mesh)
            resume(trainer, phase, start)
            fit(trainer, phase)
            start = start.after(phase, folder)
            if not phase.part.last:
                del trainer, family
                mesh.release()
        finish(phase, trainer, family, folder)
    return folder


def note_identity(mistakes: Mistakes, run: "Run", folder: Path) -> None:
    """Note that the folder holds a run which learns something else."""
    with mistakes.noted():
        check_identity(run, folder)


@dataclass(frozen=True)
class Start:
    """What a run, or its next phase, starts from."""

    run: "Run"
    """Give the run as its folder records it."""
    weights: Mapping[str, str]
    """Component -> hash of its files."""
    base: str
    data: str
    saved: Saved | None
    """The newest checkpoint."""
    resumed: bool = True
    """Whether the command has not trained yet."""

    @property
    def state(self) -> dict[str, Any]:
        """What every checkpoint says of the run."""
        return {"base": self.base, "data": self.data}

    def phases_left(self, phases: Sequence[ResolvedRun]) -> Sequence[ResolvedRun]:
        """Phases that are not trained to their end; the last is always among them."""
        done = self.saved.step if self.saved else 0
        return [phase for phase in phases if phase.part.last or done < phase.part.end]

    def of_phase_before(self, phase: ResolvedRun) -> Saved | None:
        """The checkpoint that a phase begins from: the end of the phase before it."""
        begins = self.saved is not None and phase.part.number > 0 and self.saved.step == phase.part.start
        return self.saved if begins else None

    def after(self, phase: ResolvedRun, folder: Path) -> "Start":
        """What the phase that follows starts from."""
        step = phase.part.end
        saved = Saved(folder / "checkpoints" / f"step-{step:08d}", step)
        return replace(self, saved=saved, resumed=False)


def find_start(prepared: Prepared, run: "Run", folder: Path) -> Start:
    """Check the model's files, hash what the run starts from, and find its newest checkpoint."""
    first, index = prepared.first, prepared.index
    for note in index.notes:
        say(note)
    first.shape.check_weights(list(first.shape.components))
    weights = first.weight_hashes()
    base = first.base_hash(weights)
    data = digest(*(f"{k} {v}" for k, v in sorted(index.fingerprints().items())))
    if saved := newest_checkpoint(folder):
        state = saved.state()
        check_data(index, state, folder)
        check_base(base, state, run, folder)
    elif list_saved(folder / "checkpoints"):
        say(f"no checkpoint of {folder} is whole: it starts again from step 0")
    recorded = as_recorded(run, folder, saved.step if saved else 0)
    return Start(recorded, weights, base, data, saved)


def fill_cache(phase: ResolvedRun, index: "Index", start: Start, mesh: Mesh) -> "StageCache":
    """Encode what is not cached yet, and name the captions that are cut."""
    cache = phase.open_cache(start.weights)
    filled = phase.fill_cache(index, cache, mesh)
    notes = [str(filled)] if filled.encoded else []
    if start.resumed and not filled.complete:  # told once: a large set takes minutes to tokenize
        notes += mesh.on_main(lambda: index.caption_notes(phase.shape.cut_captions))
    for note in notes if mesh.main else ():
        say(note)
    return cache


def build_trainer(
    phase: ResolvedRun,
    family: "Family",
    index: "Index",
    cache: "StageCache",
    mesh: Mesh,
    folder: Path,
    state: dict[str, Any],
    *callbacks: Callback,
) -> Trainer:
    """Put the loop around a model that is set up; `callbacks` come after those that the run states."""
    run = phase.run
    groups = param_groups(family.components, phase.claims, run.optimizer.lr, run.optimizer.weight_decay)
    optimizer = build_optimizer(run.optimizer, groups)
    ema = [EmaCallback(run.ema)] if run.ema else []
    samples = SampleCallback(run.validation, family, phase.sample_bucket(index), folder / "samples")
    stated = checked_callbacks([options.build() for options in run.callbacks])
    logs = [JsonLog("metrics.jsonl", Record.as_json), JsonLog("draws.jsonl", draws_of)]
    trainer = Trainer(
        family=family,
        objective=run.objective,
        conditions=run.conditions,
        stages=phase.live_stages(family),
        batches=phase.batches(index, cache, mesh),
        optimizer=optimizer,
        max_norm=run.optimizer.max_grad_norm,
        schedule=run.schedule,
        mesh=mesh,
        folder=folder,
        seed=run.seed,
        checkpoints=run.checkpoint,
        callbacks=[*logs, ProgressBar(), *ema, samples, *stated, *callbacks],
        state=state,
        record_draws=run.tracking.draws,
        num_workers=phase.num_workers,
        start=phase.part.start,
        total=phase.part.total,
        carried=carried_names(family, phase.claims),
    )
    for one in ema:
        one.attach(trainer.weights())
    return trainer


def write_record(folder: Path, index: "Index", start: Start, mesh: Mesh) -> None:
    """Write what the run is and what it was made of.

    Not before the cache is filled: a file that cannot be decoded shows there, and leaves no half run.
    """
    if mesh.main and start.resumed:
        write_text(folder / "run.yaml", config.dump(start.run))
        write_json(folder / "manifest.json", manifest(start.run, start.base, start.data, mesh))
        write_text(folder / "data.jsonl", data_lines(index))


def resume(trainer: Trainer, phase: ResolvedRun, start: Start) -> None:
    """Restore the newest checkpoint where it is of this phase, and tell where training goes on."""
    part = phase.part
    if start.saved and start.of_phase_before(phase) is None:
        trainer.restore(start.saved)
    elif start.saved:
        trainer.load_states(start.saved)
    if trainer.mesh.main and (start.saved or part.number):
        if trainer.step >= part.total:
            way_on = "" if part.of_phases else "; a larger schedule.steps extends it"
            say(f"{trainer.folder} is trained to step {trainer.step} already{way_on}")
        else:
            of_phases = f", phase {part.number + 1} of {part.of_phases}" if part.of_phases else ""
            say(f"going on after step {trainer.step} of {part.total}{of_phases}")


def fit(trainer: Trainer, phase: ResolvedRun) -> None:
    """Train to the end of a phase. Raises Stopped where a signal asks for it."""
    with stopped_by_signals(trainer):
        trainer.fit()
    part = phase.part
    if not part.last and any(trainer.mesh.gather(trainer.stop_wish)):  # since the last step's end
        raise shared(Stopped(f"stopped after step {part.end} of {part.total}; the same command goes on"))


@contextmanager
def stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT let the step finish; a second SIGINT stops at once.

    Python gives signals to the main thread alone: in another one, whoever started the thread handles them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def wish(number: int, frame: Any) -> None:
        trainer.stop_wish = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, wish) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(phase: ResolvedRun, trainer: Trainer, family: "Family", folder: Path) -> None:
    """Export what was trained, and write the report."""
    from ..report import write_report

    with trainer.averaged_weights():
        export(family, phase.claims.all_trained, trainer.mesh, folder / "weights")
    if phase.run.ema:
        export(family, phase.claims.all_trained, trainer.mesh, folder / "weights-raw")
    if trainer.mesh.main:
        write_report(folder)
        say(f"weights: {folder / 'weights'}\nreport: {folder / 'report.html'}")
