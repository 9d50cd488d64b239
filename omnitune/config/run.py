"""A run, from YAML: plain dataclasses. Only this package and `options.py` know pydantic."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from ..callbacks.base import AnyCallback
from ..callbacks.ema import Ema
from ..checkpoint import Checkpoints
from ..conditions import AnyCondition
from ..data.captions.kind import Data
from ..data.conversations.kind import Conversations
from ..memory.options import Memory
from ..objectives import AnyObjective
from ..objectives.diffusion import FlowMatching
from ..optim import AdamW, AnyOptimizer, Schedule
from ..options import LEARNED, NOT_LEARNED, ByName, option
from ..parallel.options import Parallel
from ..sampling import Validation
from ..trainable.freezing import Freezing
from ..trainable.rules import LoraEverywhere, Rule


@option
class Model:
    """The pretrained model."""

    family: str
    """Name in `omnitune models`, or `package.module:Class`."""
    path: Annotated[str, NOT_LEARNED]
    """Folder in the diffusers layout, hub id, or a single .safetensors file of the core network."""
    config: Annotated[str | None, NOT_LEARNED] = None
    """Folder or hub id with everything that a single file lacks: configuration, tokenizers, scheduler."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """In which the networks are stored and computed; what trains is stored in float32 always."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the family (text length...), listed by `omnitune models`."""

    def __post_init__(self) -> None:
        is_file = self.path.endswith(".safetensors")
        if is_file and self.config is None:
            raise ValueError(
                f"{self.path} is a single file; add config, the folder or hub id that has its configuration, "
                "tokenizers and scheduler"
            )
        if self.config is not None and not is_file:
            raise ValueError(
                f"config has no effect beside {self.path}, which is no .safetensors file; leave it out"
            )


@option
class Tracking:
    """What is written down while training."""

    draws: bool = False
    """Write draws.jsonl: sample ids and a hash of every random draw of each step, to compare two runs."""


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "rules"
    return "everywhere" if isinstance(value, dict | LoraEverywhere) else "full"


AnyData = Annotated[Data | Conversations, ByName("captions")]
AnyTrainable = Annotated[
    Annotated[list[Rule], Tag("rules")]
    | Annotated[Literal["full"], Tag("full")]
    | Annotated[LoraEverywhere, Tag("everywhere")],
    Discriminator(_kind),
]


@option
class Phase(Freezing):
    """A part of a run with rules and rates of its own."""

    trainable: AnyTrainable
    """As a run's."""
    schedule: Annotated[Schedule, LEARNED]
    """Its length, and how its rates move; both count from its first step."""
    optimizer: AnyOptimizer | None = None
    """Absent: the run's."""


@dataclass(frozen=True)
class Part:
    """A phase of a run, or all of it: what is trained from one step to another."""

    start: int
    """Steps that are done before it."""
    end: int
    run: "Run"
    """As a run without phases."""
    total: int
    """Steps of all phases."""
    number: int = 0
    of_phases: int = 0
    """How many phases there are; 0 for a run without."""

    @property
    def last(self) -> bool:
        return self.end == self.total


@option
class Run(Freezing):
    """Everything that a training run needs to be repeated."""

    name: Annotated[str, NOT_LEARNED]
    """Of the run's folder; the YAML file's name unless stated."""
    model: Model
    trainable: AnyTrainable | None = None
    """Rules, `full` (all of the core network) or `{lora: {...}}` (the family's default layers)."""
    phases: list[Phase] = field(default_factory=list)
    """Parts that follow each other, each with its own `trainable`, flags of freezing and `schedule`."""
    data: AnyData
    objective: AnyObjective = FlowMatching()
    conditions: list[AnyCondition] = field(default_factory=list)
    optimizer: AnyOptimizer = AdamW()
    schedule: Schedule = Schedule()
    seed: int = 0
    """Of every random draw."""
    init_from: Annotated[Path | None, NOT_LEARNED] = None
    """LoRA file or exported weights folder to start from."""
    init_format: Annotated[str | None, NOT_LEARNED] = None
    """Format of that, by name or as `package.module:Class`; absent: found out."""
    ema: Ema | None = None
    """Keep an exponential moving average of what trains."""
    checkpoint: Annotated[Checkpoints, NOT_LEARNED] = Checkpoints()
    validation: Annotated[Validation, NOT_LEARNED] = Validation()
    parallel: Annotated[Parallel, NOT_LEARNED] = Parallel()
    memory: Annotated[Memory, NOT_LEARNED] = Memory()
    tracking: Annotated[Tracking, NOT_LEARNED] = Tracking()
    callbacks: Annotated[list[AnyCallback], NOT_LEARNED] = field(default_factory=list)
    """What else happens around the steps, by `name: package.module:Class`; see docs/guides/callbacks.md."""

    @property
    def steps(self) -> int:
        """Of all phases."""
        return self.parts()[-1].end

    def parts(self) -> list[Part]:
        """What follows each other, each as a run without phases."""
        if not self.phases:
            return [Part(0, self.schedule.steps, self, self.schedule.steps)]
        found: list[Part] = []
        total = sum(phase.schedule.steps for phase in self.phases)
        for number, phase in enumerate(self.phases):
            start = found[-1].end if found else 0
            stated = {f.name: getattr(phase, f.name) for f in dataclasses.fields(phase)}
            stated["optimizer"] = phase.optimizer or self.optimizer
            run = dataclasses.replace(self, phases=[], **stated)
            end = start + phase.schedule.steps
            found.append(Part(start, end, run, total, number, len(self.phases)))
        return found

    def _check_phases(self) -> None:
        if self.trainable is None and not self.phases:
            raise ValueError("trainable: is missing; give rules, full, {lora: {}}, or phases")
        if not self.phases:
            return
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(Freezing)}
        said = [name for name, value in plain.items() if value not in (None, {})]
        said += ["trainable"] if self.trainable is not None else []
        said += ["schedule"] if self.schedule != Schedule() else []
        if said:
            raise ValueError(f"{said[0]}: stands beside phases, which have their own; move it into them")
        if self.ema is not None:
            raise ValueError("ema: an average over phases that train other parts is none; leave it out")

    def __post_init__(self) -> None:
        self._check_phases()
        if self.init_format is not None and self.init_from is None:
            raise ValueError("init_format: has no effect without init_from, whose format it is; leave it out")
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise ValueError(f"name: {self.name!r} cannot name a folder; use letters, digits, - and _")
        if len(self.name.encode()) > 100:  # of 255 that a folder's name may have: others are made of it
            raise ValueError(f"name: {self.name[:20]}... is longer than 100 bytes; choose a shorter one")
        norm, lr = self.optimizer.max_grad_norm, self.optimizer.lr
        if norm is not None and not (isinstance(norm, float | int) and norm > 0):
            raise ValueError(f"optimizer.max_grad_norm: must be above 0, or null for none, not {norm!r}")
        if not (isinstance(lr, float | int) and lr >= 0):
            raise ValueError(f"optimizer.lr: must be a number, 0 or more, not {lr!r}")
        names = [condition.name for condition in self.conditions]
        if twice := [i for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"conditions.{twice[0]}: {names[twice[0]]} stands here a second time; keep one")
        micro, batch = self.parallel.micro_batch_size, self.data.batch_size
        if micro is not None and micro > batch:
            raise ValueError(
                f"parallel.micro_batch_size: {micro} is above data.batch_size {batch}, which is "
                "what the optimizer "
                "sees over all devices; raise that or lower this"
            )
