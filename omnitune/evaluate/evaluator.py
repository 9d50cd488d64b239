"""What measures a run: its weights, what they are held against, and the metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ..data.encode import fill
from ..errors import UserError
from ..objectives.held_out import Step
from ..options import import_class
from ..parallel.mesh import Mesh, Parallel
from ..progress import say
from .request import EvaluateRequest
from .results import Measure

if TYPE_CHECKING:
    from ..checkpoint import Saved
    from ..data.sizes import Bucket
    from ..resolve import Job
    from ..sampling import Validation


@dataclass(frozen=True)
class Subject:
    """A run whose conditions draw nothing, and how its model meets other data."""

    job: "Job"
    options: "Validation"
    saved: "Saved | None"
    """The checkpoint that is measured; None: the model before training."""
    with_data: "Callable[[Any], Job]"
    """The run on other data."""
    load: "Callable[[Job, Mesh], Any]"
    """The family with the weights that are measured."""
    sample_size: "Callable[[str | None], Bucket | None]"


class Evaluator(ABC):
    """A run's weights, and what metrics need of them."""

    gives: ClassVar[Sequence[str]]
    """What metrics of such models may need."""
    index: Any
    """Of the data that were not trained on."""

    def __init__(self, request: EvaluateRequest, subject: Subject, known: "Mapping[str, type[Metric[Any]]]"):
        self.request, self.subject, self.known = request, subject, known
        self.job, self.options, self.saved = subject.job, subject.options, subject.saved
        self.mesh = Mesh(Parallel())
        self._read_data()
        self.metrics = self._measurable()

    @abstractmethod
    def _read_data(self) -> None:
        """Set `index`, and `job` to the run on it."""

    @property
    def label(self) -> str:
        name = "base" if self.saved is None else f"step-{self.saved.step:08d}"
        return f"{name}-raw" if self.saved and self.request.raw else name

    @cached_property
    def family(self) -> Any:
        return self.subject.load(self.subject.job, self.mesh)

    @cached_property
    def step(self) -> Step:
        """What a training step computes its loss with, on these data."""
        filled = fill(self.job, self.index, self.mesh)
        if filled.encoded:
            say(str(filled))
        run, stages = self.job.run, self.job.stages(self.family, self.job.live_names)
        batches = self.job.batches(self.index, self.mesh)
        return Step(self.family, run.objective, run.conditions, stages, batches, self.mesh.device)

    def described(self) -> dict[str, Any]:
        """How the numbers came about."""
        return {"run": self.job.run.name, "weights": self.label, "data": self.request.data}

    def measures(self) -> list[Measure]:
        """The rows of every metric; mistakes in files are met before anything is generated."""
        for metric in self.metrics.values():
            metric.load()
        return [row for metric in self.metrics.values() for row in metric.measure()]

    @abstractmethod
    def lack(self, need: str) -> str | None:
        """Say what one of `gives` needs and does not have."""

    def _measurable(self) -> "dict[str, Metric[Any]]":
        """Metrics asked for, or all that have what they need; raises UserError for one that lacks it."""
        stated = self.request.metrics
        applicable = [name for name, metric in self.known.items() if set(metric.needs) <= set(self.gives)]
        names = applicable if stated is None else stated.split(",")
        metrics = {name: self._metric(name, applicable) for name in names}
        lacks = {name: self._lack(metric) for name, metric in metrics.items()}
        found = {name: metric for name, metric in metrics.items() if lacks[name] is None}
        for name, lack in lacks.items():
            if lack is not None and stated is not None:
                raise UserError(f"--metrics: {name} {lack}")
        if not found:
            raise UserError("--data: none is given, and nothing can be measured without; name a folder")
        self.request.check_used(list(found))
        for name, lack in lacks.items():
            if lack is not None:
                say(f"{name}: left out, it {lack}")
        return found

    def _metric(self, name: str, applicable: Sequence[str]) -> "Metric[Any]":
        if name not in self.known and ":" not in name:
            raise UserError(f"--metrics: {name!r} is not one of {', '.join(self.known)}")
        try:
            metric: type[Metric[Any]] = self.known.get(name) or import_class(name)
        except ValueError as error:
            raise UserError(f"--metrics: {error}") from None
        if foreign := [need for need in metric.needs if need not in self.gives]:
            family = self.job.family_class.name
            raise UserError(
                f"--metrics: {name} needs {foreign[0]}, which family {family} does not give; choose of "
                f"{', '.join(applicable)}"
            )
        return metric(self)

    def _lack(self, metric: "Metric[Any]") -> str | None:
        lacks = [*(self.lack(need) for need in metric.needs)]
        return next((lack for lack in lacks if lack is not None), None) or metric.lack()


E = TypeVar("E", bound=Evaluator)


class Metric(ABC, Generic[E]):
    """A number of a run, or a few; E is what it measures by.

    A class of another package is one too: `omnitune evaluate --metrics package.module:Class`.
    """

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
