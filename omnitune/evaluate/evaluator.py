"""What measures a run: its weights, what they are held against, and the metrics."""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isfinite
from typing import Any, ClassVar, Generic, TypeVar

from ..errors import UserError
from ..model import set_up
from ..objectives.held_out import Step
from ..options import import_class
from ..parallel.mesh import Mesh
from ..parallel.options import Parallel
from ..progress import say
from ..requests import EvaluateRequest
from ..resolve import ResolvedRun
from ..run_folder import find_checkpoint
from ..sampling import overridden
from .results import Measure


class Evaluator(ABC):
    """A run's weights, and what metrics need of them."""

    gives: ClassVar[Sequence[str]]
    """What metrics of such models may need."""
    reads: ClassVar[Sequence[str]] = ()
    """Options of the request that it reads itself."""
    index: Any = None
    """Of the data that were not trained on; None where none are given."""
    job: ResolvedRun
    """The run on these data, or on its own."""

    def __init__(self, request: EvaluateRequest, run: ResolvedRun, known: "Mapping[str, type[Metric[Any]]]"):
        self.request, self.run, self.job = request, run, run
        given = {name: getattr(request, name) for name in ("steps", "guidance", "seed")}
        self.options = overridden(run.run.validation, given)
        self.saved = None if request.base else find_checkpoint(request.folder, request.checkpoint)
        self.mesh = Mesh(Parallel())
        self._read_data()
        self.metrics = self._measurable(known)

    @abstractmethod
    def _read_data(self) -> None:
        """Set `index`, and `job` to the run on it."""

    @property
    def label(self) -> str:
        name = "base" if self.saved is None else f"step-{self.saved.step:08d}"
        return f"{name}-raw" if self.saved and self.request.raw else name

    @cached_property
    def family(self) -> Any:
        return set_up(self.run, self.mesh, self.saved, average=not self.request.raw)

    @cached_property
    def step(self) -> Step:
        """What a training step computes its loss with, on these data."""
        cache = self.job.open_cache()
        filled = self.job.fill_cache(self.index, cache, self.mesh)
        if filled.encoded:
            say(str(filled))
        run, stages = self.job.run, self.job.live_stages(self.family)
        batches = self.job.batches(self.index, cache, self.mesh)
        return Step(self.family, run.objective, run.conditions, stages, batches, self.mesh.device)

    def described(self) -> dict[str, Any]:
        """How the numbers came about."""
        return {"run": self.run.run.name, "weights": self.label, "data": self.request.data}

    def measures(self) -> list[Measure]:
        """The rows of every metric; mistakes in files are met before anything is generated."""
        for metric in self.metrics.values():
            metric.load()
        return [row for name, metric in self.metrics.items() for row in _rows(name, metric)]

    @abstractmethod
    def lack(self, need: str) -> str | None:
        """Say what one of `gives` needs and does not have."""

    def _measurable(self, known: "Mapping[str, type[Metric[Any]]]") -> "dict[str, Metric[Any]]":
        """Metrics asked for, or all that have what they need; raises UserError for one that lacks it."""
        stated, found, left_out = self.request.metrics, {}, []
        applicable = [name for name, metric in known.items() if set(metric.needs) <= set(self.gives)]
        asked = applicable if stated is None else stated.split(",")
        if twice := [name for i, name in enumerate(asked) if name in asked[:i]]:
            raise UserError(f"--metrics: {twice[0]} stands there twice; name it once")
        for name in asked:
            metric = self._metric(name, known, applicable)
            lack = next(filter(None, map(self.lack, metric.needs)), None) or metric.lack()
            if lack is None:
                found[name] = metric
            elif stated is not None:
                raise UserError(f"--metrics: {name} {lack}")
            else:
                left_out.append(f"{name}: left out, it {lack}")
        if not found:
            raise UserError("--data: none is given, and nothing can be measured without; name a folder")
        read = {*self.reads, *(option for metric in found.values() for option in metric.reads)}
        self.request.check_used(read, found)
        for line in left_out:
            say(line)
        return found

    def _metric(
        self, name: str, known: "Mapping[str, type[Metric[Any]]]", applicable: Sequence[str]
    ) -> "Metric[Any]":
        if name not in known and ":" not in name:
            raise UserError(f"--metrics: {name!r} is not one of {', '.join(known)}, nor module:Class")
        try:
            metric: type[Metric[Any]] = known.get(name) or import_class(name, Metric)
        except ValueError as error:
            raise UserError(f"--metrics: {error}") from None
        if foreign := [need for need in metric.needs if need not in self.gives]:
            family = self.job.family_class.name
            raise UserError(
                f"--metrics: {name} needs {foreign[0]}, which family {family} does not give; choose of "
                f"{', '.join(applicable)}"
            )
        return metric(self)


def _rows(name: str, metric: "Metric[Any]") -> Sequence[Measure]:
    rows: Any = metric.measure()
    if not isinstance(rows, Sequence) or not all(isinstance(row, Measure) for row in rows):
        raise UserError(f"--metrics: measure() of {name} gives {reprlib.repr(rows)}, not a list of Measure")
    for row in rows:
        if not isfinite(row.value):
            say(f"{name}: {row.name} is {row.value}, no number")
    return rows


E = TypeVar("E", bound=Evaluator)


class Metric(ABC, Generic[E]):
    """A number of a run, or a few; E is what it measures by.

    A class of another package is one too: `omnitune evaluate --metrics package.module:Class`.
    """

    reads: ClassVar[Sequence[str]] = ()
    """Options of the request that it reads itself."""
    needs: ClassVar[Sequence[str]] = ()
    """Of `data` and, for pictures and clips, `samples`, `clips`, `features`, `autoencoder`; for text,
    `answers`."""

    def __init__(self, evaluator: E):
        self.evaluator = evaluator

    def lack(self) -> str | None:
        """Say what it lacks beside its needs, as the end of a sentence: `needs ...`."""
        return None

    def load(self) -> None:
        """Read what networks and files it has, before anything is generated."""

    @abstractmethod
    def measure(self) -> list[Measure]:
        """Give the rows of the result."""
