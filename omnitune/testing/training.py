"""A run's trainer as `train` makes it, for tests and benchmarks of single steps."""

from dataclasses import dataclass
from pathlib import Path

from ..commands.train import build_trainer
from ..config.run import Run
from ..data.cache import StageCache
from ..data.dataset import Dataset, Index
from ..families.base import Family
from ..model import set_up
from ..parallel.mesh import Mesh
from ..resolve import ResolvedRun, prepare
from ..trainer import Trainer


@dataclass(frozen=True)
class Training:
    """A run before its first step, with its cache filled."""

    resolved: ResolvedRun
    index: Index
    cache: StageCache
    mesh: Mesh
    trainer: Trainer

    @property
    def family(self) -> Family:
        return self.trainer.family

    @property
    def dataset(self) -> Dataset:
        return self.resolved.bound.dataset(self.index)


def start_training(run: Run, folder: Path) -> Training:
    """Bring the first phase of a run to its first step; what it writes goes into the folder."""
    mesh = Mesh(run.parallel)
    prepared = prepare(run, mesh)
    first, index = prepared.first, prepared.index
    cache = first.open_cache()
    first.fill_cache(index, cache, mesh)
    family = set_up(first, mesh, training=True)
    trainer = build_trainer(first, family, index, cache, mesh, folder, {})
    return Training(first, index, cache, mesh, trainer)
