"""What is measured of a run, whatever its model gives: its weights, and which metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from ..errors import UserError
from ..model import set_up
from ..parallel.mesh import Mesh, Parallel
from ..progress import say
from ..resolve import resolve_run
from ..run_folder import find_checkpoint, read_run
from ..sampling import overridden
from .asked import Asked
from .data import deterministic
from .table import Measure


class Subject(ABC):
    """A run's weights; every metric of a subject is a method that gives rows."""

    known: ClassVar[Sequence[str]]
    """Metrics of what such models give."""
    foreign: ClassVar[str]
    """Why the others are none of them."""
    metrics: Sequence[str]
    """Those that are measured."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self.run = read_run(asked.folder)
        given = {name: getattr(asked, name) for name in ("steps", "guidance", "seed")}
        self.options = overridden(self.run.validation, given)
        self.saved = None if asked.base else find_checkpoint(asked.folder, asked.checkpoint)
        self.mesh = Mesh(Parallel())
        self.job = resolve_run(deterministic(self.run))

    @property
    def label(self) -> str:
        name = "base" if self.saved is None else f"step-{self.saved.step:08d}"
        return f"{name}-raw" if self.saved and self.asked.raw else name

    @cached_property
    def family(self) -> Any:
        return set_up(self.job, self.mesh, self.saved, average=not self.asked.raw)

    def described(self) -> dict[str, Any]:
        """How the numbers came about."""
        return {"run": self.run.name, "weights": self.label, "data": self.asked.data}

    def measures(self) -> list[Measure]:
        """The rows of every metric that was asked for."""
        return [row for metric in self.metrics for row in getattr(self, metric)()]

    @abstractmethod
    def lack(self, name: str) -> str | None:
        """What a known metric needs and does not have."""

    def measurable(self) -> list[str]:
        """Metrics asked for, or all that have what they need; raises UserError for one that lacks it."""
        lacks = {name: self._lack(name) for name in self.asked.names(self.known)}
        found = [name for name, lack in lacks.items() if lack is None]
        for name, lack in lacks.items():
            if lack is not None and self.asked.metrics is not None:
                raise UserError(f"--metrics: {name} {lack}")
        if not found:
            raise UserError("--data: none is given, and nothing can be measured without; name a folder")
        self.asked.check_used(found)
        for name, lack in lacks.items():
            if lack is not None:
                say(f"{name}: left out, it {lack}")
        return found

    def _lack(self, name: str) -> str | None:
        if name in self.known:
            return self.lack(name)
        family = self.job.family_class.name
        return f"{self.foreign.format(family=family)}; choose of {', '.join(self.known)}"
