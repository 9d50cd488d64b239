"""The hooks of a callback, what it may use of the trainer, and what it receives."""

import json
import reprlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from ..errors import UserError
from ..options import ByName

if TYPE_CHECKING:
    from torch import Tensor

    from ..conditions.base import Condition
    from ..data.loader import MicroBatches
    from ..families.base import Family
    from ..objectives.base import Objective
    from ..parallel.mesh import Mesh
    from ..stages import Stage

State = Mapping[str, Any]
"""What JSON can hold: texts, numbers, booleans, None, lists and mappings of them."""


@dataclass(frozen=True)
class Rows:
    """What each sample of a global batch lost, in the order of the batch."""

    ids: Sequence[str]
    losses: Sequence[float]
    """Each averaged over the sample's own units: its elements, or its learned tokens."""
    levels: Sequence[float] | None
    """The noise levels, 0 data and 1 noise; None for an objective without."""


@dataclass(frozen=True)
class Record:
    """What one step measured over the global batch; losses and norms are equal on all ranks."""

    step: int
    epoch: float
    samples: int
    """Seen since the start of the run."""
    loss: float
    lr: Mapping[str, float]
    """By rule."""
    grad_norm: float
    """Before clipping."""
    means: Mapping[str, float]
    """What else the objective measures, averaged over samples: `u`, the noise level."""
    seconds: float
    """Of the step on its device, the wait for data included; without samples, saves and other callbacks."""
    samples_per_second: float
    peak_memory_bytes: int
    """Most that a step of this process held so far: of the device, or of the process on a CPU."""
    draws: Mapping[str, Sequence[str]] | None = None
    """Sample ids, and a hash of each random draw by purpose; where the run records them."""
    rows: Rows | None = None
    """Where a callback wants them."""

    def as_json(self) -> dict[str, Any]:
        """The object that metrics.jsonl holds."""
        apart = ("means", "draws", "rows")
        numbers = {name: value for name, value in vars(self).items() if name not in apart}
        return {**numbers, "lr": dict(self.lr), **self.means}  # copies, so that nobody changes the record


@dataclass(frozen=True)
class Samples:
    """What was generated while training."""

    step: int
    requests: Sequence[Any]
    """A `Sampling` or a `Question` each."""
    made: Sequence[Any]
    """Of each request: uint8 frames (T, H, W, 3), T = 1 for a picture; or the answer."""
    files: Sequence[Path] = field(default_factory=list)
    """Where each was written."""


class TrainerView(Protocol):
    """What a callback may use of the trainer."""

    step: int
    """How many steps are done."""
    stop_wish: bool
    """Set to stop as a signal does: the step is saved, the command ends with code 75 and can be resumed."""
    finish_wish: bool
    """Set to end the run here as finished: the step is saved, results are exported. With several ranks it
    may take one more step. In `on_start`, set it on all ranks."""
    family: "Family"
    objective: "Objective"
    conditions: "Sequence[Condition]"
    stages: "Sequence[Stage]"
    batches: "MicroBatches"
    mesh: "Mesh"
    folder: Path
    """Of the run."""
    last_step: int

    def weights(self) -> "dict[str, Tensor]":
        """Everything that trains, by name."""

    def averaged_weights(self) -> AbstractContextManager[None]:
        """For a while, hold the weights that users get."""

    def report_samples(self, samples: Samples) -> None:
        """Give samples to the `on_samples` of every callback."""


class Callback:
    """Does nothing unless overridden. Hooks run on every rank, in the order of the trainer's list.

    `on_record` and `on_samples` run on the main rank alone, so they must not call the model or the mesh.
    """

    wants_rows = False
    """Whether records carry each sample's loss and noise level; costs a little in each step."""

    def on_start(self, trainer: TrainerView) -> None:
        """Before the first step, after a checkpoint was restored."""

    def on_step(self, trainer: TrainerView) -> None:
        """After each step; `trainer.step` counts the steps that are done."""

    def on_record(self, record: Record) -> None:
        """What a step measured, each once and in order, about a second later: steps do not wait for it."""

    def on_samples(self, samples: Samples) -> None:
        """After samples were generated and written."""

    def on_save(self, trainer: TrainerView) -> None:
        """Before a checkpoint is written; the records of all steps so far were given."""

    def on_end(self, trainer: TrainerView) -> None:
        """After the last step and its checkpoint; not when a signal stops the run."""

    def on_close(self, trainer: TrainerView) -> None:
        """At the very end, also when the run is stopped or fails; ranks may be lost: no collectives."""

    def averaged_weights(self, weights: "dict[str, Tensor]") -> AbstractContextManager[None]:
        """For a while, put the weights that users get (an average, say) in place of those that train."""
        return nullcontext()

    def tensors(self) -> "dict[str, Tensor]":
        """What the checkpoint keeps in full precision; read back in place, so a checkpoint must have them."""
        return {}

    def state(self) -> State:
        """What else the checkpoint keeps, as the main rank has it; empty: nothing."""
        return {}

    def load_state(self, state: State) -> None:
        """Take up what `state` gave, on every rank, before `on_start`."""


def check_metrics(names: Collection[str]) -> None:
    """Raise UserError for a metric of the objective that is called as a number of every record is."""
    if taken := [name for name in names if name in Record.__dataclass_fields__]:
        raise UserError(
            f"objective: its metric {taken[0]} is called as a field of every record; give it another name"
        )


def checked_state(name: str, callback: Callback) -> dict[str, Any]:
    """What a callback keeps in the checkpoint. Raises UserError for what would not come back as it is."""
    given: Any = callback.state()
    try:
        state = dict(given)
        same = json.loads(json.dumps(state)) == state
    except (TypeError, ValueError, RecursionError):
        state, same = {}, False
    if not same:
        raise UserError(
            f"callbacks: {name}: state() gives {reprlib.repr(given)}, which JSON does not give back as it "
            "is; keep texts, numbers, lists and mappings with texts as keys, and tensors in tensors()"
        )
    return state


def load_states(named: Sequence[tuple[str, Callback]], kept: Mapping[str, State]) -> None:
    """Give callbacks what they kept. Raises UserError where one of several of a class is gone."""
    there = dict(named)
    for name in kept.keys() - there.keys():
        kind = name.partition("#")[0]
        if kind in there:
            raise UserError(
                f"callbacks: the checkpoint has the state of more than one {kind} and the run has fewer, so "
                "it is not known whose each is; state as many, in the same order"
            )
    for name, callback in named:
        if name in kept:
            callback.load_state(kept[name])


def checked_callbacks(found: Sequence[Callback]) -> Sequence[Callback]:
    """Raise UserError for what is no callback."""
    for one in found:
        if not isinstance(one, Callback):
            raise UserError(
                f"callbacks: {reprlib.repr(one)} is no omnitune.Callback; derive its class from it"
            )
    return found


class CallbackOptions(Protocol):
    """What stands under `callbacks`: an option with a field `name` and this method."""

    def build(self) -> Callback:
        """Make the callback of one run, or of one of its phases."""


AnyCallback = Annotated[CallbackOptions, ByName(None, CallbackOptions)]
"""All of them are of other packages: `name: package.module:Class`."""
