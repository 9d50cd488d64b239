"""What a run comes down to, worked out on the meta device before anything heavy is loaded.

Every command starts here: the family without weights, what each rule claims, which stages are cached.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import config
from .conditions.base import Condition
from .data.buckets import nearest_frames, nearest_sides
from .data.cache import StageCache
from .data.encode import Filled, fill
from .data.loader import READERS, MicroBatches, usable_cores
from .data.order import Order
from .data.sizes import Bucket
from .errors import Mistakes, UserError
from .export.start import start_format
from .families import resolve as find_family
from .families.base import Family
from .files import Hashes, digest, read_jsonl
from .memory.reach import learning_blocks
from .parallel.device import device_type
from .progress import Working
from .sampling import check_files, parse_bucket
from .stages import Stage, split_stages
from .trainable.adapters import claim_always
from .trainable.freezing import spell_rules
from .trainable.parameters import ParameterIndex
from .trainable.rules import Claims, Rule, claim, match

if TYPE_CHECKING:
    from .config.run import Part, Run
    from .data.dataset import Index, RunData
    from .data.sizes import Bucket
    from .parallel.mesh import Mesh

CACHE_FORMAT = 1
"""Raised when entries of the cache are written in another way."""


HOOKS = {name: method for name, method in vars(Condition).items() if callable(method)}
"""Where a condition may act."""


class ResolvedRun:
    """A run held against its model: family, claims, stages.

    What is wrong is in `mistakes`: raise them before anything but data is asked for. `index` raises them too,
    together with those of the data.
    """

    family_class: type[Family]
    shape: Family
    """The family on the meta device: everything but weights."""
    claims: Claims
    cached: list[Stage]
    live: list[Stage]

    def __init__(self, part: "Part", earlier: Claims | None = None):
        run = part.run
        self.part, self.run, self.mistakes, self.earlier = part, run, Mistakes(), earlier
        self.options: Any = None
        self.replaced: Mapping[str, Path] = {}
        self.data: RunData | None = None
        noted = self.mistakes.noted
        with noted():
            self.family_class = find_family(run.model.family)
            with noted():
                if run.init_from is not None:
                    self.replaced = start_format(run.init_from, self.formats).folders(run.init_from)
            with noted():  # the rest is looked at as the family's defaults make it
                options = config.validate_options
                self.options = options(self.family_class.Options, run.model.options, "model.options")
            self.shape = self.load_family("meta")
            if lack := self.shape.missing_condition():
                self.mistakes.errors.append(UserError(lack))
            self._match()

    def _match(self) -> None:
        """Hold every part of the run against the model."""
        run, noted = self.run, self.mistakes.noted
        with noted():
            run.objective.prepare(self.shape)
        self._bind_data()
        self._claim()
        self._check_stages()
        with noted():
            _ = self.shape.export_notes
        cacheable, live = split_stages(self.shape.stages, self.claims.all_trained.trained, self.bound.media)
        self.cached, self.live = (cacheable, live) if run.data.cache else ([], self.shape.stages)
        with noted():
            self._check_memory()

    def _bind_data(self) -> None:
        """Hold the data against the model; raises UserError where they are of another kind."""
        data, family = self.run.data, self.shape
        if data.name != family.trained_on:
            raise UserError(
                f"data.name: {data.name}, but family {family.name} is trained on {family.trained_on}; set "
                f"name: {family.trained_on}, with the options of that"
            )
        self.data = data.bind(family, self.run.seed, self.memo_folder, self.mistakes)
        with self.mistakes.noted():
            _ = self.sample_size
        self._check_media()
        self.mistakes.errors += family.request_type.check(self.run.validation, family.media)

    def _check_media(self) -> None:
        """Note what conditions need of each sample and the data do not bring."""
        name, brought = self.run.data.name, self.bound.brings
        for condition in self.shape.conditions:
            if all(getattr(type(condition), own) is default for own, default in HOOKS.items()):
                told = f"{condition.name} overrides no method of Condition, so it does nothing"
                self.mistakes.errors.append(
                    UserError(f"conditions: {told}; correct the names of its methods")
                )
            needs = [medium.name for medium in condition.media(self.shape) if medium.training]
            self.mistakes.errors += [
                UserError(
                    f"conditions: {condition.name} needs {need} of each sample, and {name} bring "
                    f"{', '.join(brought)}; remove it, or train on data that have {need}"
                )
                for need in needs
                if need not in brought
            ]

    def _check_stages(self) -> None:
        """Note stages of conditions that hide another's: in the cache, or in the batch."""
        stages = self.shape.stages
        for i, stage in enumerate(stages[len(self.shape.own_stages) :], len(self.shape.own_stages)):
            if any(stage.name == other.name for other in stages[:i]):
                told = f"two stages are called {stage.name}, which is their place in the cache"
                self.mistakes.errors.append(UserError(f"conditions: {told}; rename that of the condition"))
            given = {name for other in stages[:i] for name in other.gives}
            if lacking := set(stage.needs) - {*given, *self.bound.brings}:
                told = (
                    f"stage {stage.name} needs {min(lacking)}, which neither samples nor earlier stages give"
                )
                self.mistakes.errors.append(UserError(f"conditions: {told}; correct its needs"))
            if hidden := [name for name in stage.gives if name in given]:
                told = f"stage {stage.name} gives {hidden[0]}, which an earlier stage gives already"
                self.mistakes.errors.append(UserError(f"conditions: {told}; give it another name"))

    def _claim(self) -> None:
        """Match rules, flags of freezing and options that train against the parameters."""
        run, family = self.run, self.shape
        assert run.trainable is not None, run.name
        targets = self.family_class.lora_targets
        rules = spell_rules(run.trainable, run, family.components, family.roles, family.cores, targets)
        with self.mistakes.noted():
            self._check_adapters(rules)
        claims = claim(family.components, rules, family.roles)
        stated = run.statements(family.roles)
        claims = claim_always(claims, family.always_trained, stated, family.roles)
        self.claims = claims if self.earlier is None else claims.after(self.earlier)

    def _check_adapters(self, rules: Sequence[Rule]) -> None:
        cls = self.family_class
        taken = match(ParameterIndex(self.shape.components, self.shape.roles), rules).taken
        claimed = {(number, name.split(".")[0]) for name, number in taken.items()}
        able = [name for name in cls.adapter_components if name in self.shape.components]
        mistakes = [
            f"trainable.{number}.lora: the published pipeline of {cls.name} loads no LoRA for {component}, "
            f"only for {', '.join(able)}; train that part without lora"
            for number, component in sorted(claimed)
            if rules[number].lora and component not in cls.adapter_components
        ]
        if mistakes:
            raise UserError("\n".join(mistakes))

    def _check_memory(self) -> None:
        if self.run.memory.checkpointing != "none" and not self.learning_blocks(self.shape):
            raise UserError(
                f"memory.checkpointing: {self.run.memory.checkpointing} has no effect: no gradient flows "
                f"through a repeated layer of {self.shape.name} here; leave it out"
            )

    @property
    def formats(self) -> Sequence[str]:
        """Those in which `init_from` may be."""
        return self.family_class.formats if self.run.init_format is None else (self.run.init_format,)

    def load_family(
        self, device: str, only: Sequence[str] | None = None, without: Sequence[str] | None = None
    ) -> Family:
        """Load components, or all for None, and let conditions and data change them.

        Parameters under the prefixes `without` belong to stages that are cached: they need not be there.
        """
        model = self.run.model
        dtype: torch.dtype = getattr(torch, model.dtype)
        family = self.family_class.load(
            model.path,
            device,
            dtype,
            only=only,
            options=self.options,
            revision=model.revision,
            config=model.config,
            replaced=self.replaced,
            without=without,
        )
        for condition in self.run.conditions:
            family.add_condition(condition)
        if self.data is not None:
            self.data.fit(family)
        return family

    # What a step needs

    @property
    def train_components(self) -> list[str]:
        """Components that a step needs in memory: what trains, the core, and what live stages use."""
        used = {use.split(".")[0] for stage in self.live for use in stage.uses}
        trained = self.claims.components
        cores = self.shape.cores if trained.isdisjoint(self.shape.cores) else ()
        wanted = {*cores, *trained, *used}
        return [name for name in self.shape.components if name in wanted]

    def learning_blocks(self, family: Family) -> dict[str, list[nn.Module]]:
        """Component -> the repeated layers that gradients flow through in a step."""
        components = {n: module for n, module in family.components.items() if n in self.train_components}
        return learning_blocks(components, family.blocks, self.shape.stages, self.claims.trained)

    def live_stages(self, family: Family) -> list[Stage]:
        """The stages of a loaded family that run in every step."""
        names = {stage.name for stage in self.live}
        return [stage for stage in family.stages if stage.name in names]

    # Samples

    def read_size(self, text: str, where: str) -> Bucket:
        """Read a size of samples; raises UserError for one that the model does not take."""
        family, sizes = self.shape, self.bound.sizes
        if "size" in family.request_type.unread:
            raise UserError(f"{where}: has no effect, {family.request_type.reason}; leave it out")
        bucket, limits = parse_bucket(text, where), family.limits
        frames = nearest_frames(bucket.frames, limits)
        nearest = Bucket(frames, *nearest_sides((bucket.height, bucket.width), limits))
        if nearest != bucket:
            raise UserError(
                f"{where}: {bucket} is not a size that {family.name} takes; the nearest is {nearest}"
            )
        if limits.one_size and sizes and bucket not in sizes:
            raise UserError(f"{where}: {bucket}, but this run's positions are of {sizes[0]}; use that")
        return bucket

    @property
    def sample_size(self) -> Bucket | None:
        """The size that `validation.size` states, if any."""
        stated = self.run.validation.size
        return None if stated is None else self.read_size(stated, "validation.size")

    def sample_bucket(self, index: "Index") -> Bucket | None:
        """The size that is sampled: as stated, or the data's largest; None where samples are answers."""
        return self.sample_size or index.largest

    def trained_bucket(self, folder: Path, size: str | None = None) -> Bucket | None:
        """The size to generate: as stated, or the largest that a run folder trained on; None for answers."""
        if size is not None:
            return self.read_size(size, "--size")
        if "size" in self.family_class.request_type.unread:
            return None
        lines = folder / "data.jsonl"
        rows = read_jsonl(lines, "bucket") if lines.is_file() else []
        if not rows:
            raise UserError(
                f"--size: {lines} is missing or empty, which tells the largest size of the data; state a size"
            )
        sizes = {parse_bucket(row["bucket"], str(lines)) for row in rows}
        return max(sizes, key=lambda bucket: bucket.size)

    # Data

    @property
    def bound(self) -> "RunData":
        """The data, held against the model; mistakes in the model were raised before this is asked for."""
        assert self.data is not None
        return self.data

    @property
    def memo_folder(self) -> Path:
        """Where hashes of files are remembered: beside the cache, so that all runs on it share them."""
        return (self.run.data.cache or Path(".cache")).absolute()

    def index(self, verify: bool = False, look: "Callable[[Index], None] | None" = None) -> "Index":
        """Find and hash the data; raises UserError with every mistake in them and in the run.

        `look` sees the sound part of the data before that, and may add mistakes.
        """
        hashes = Hashes(self.memo_folder, verify)
        if self.data is None:  # nothing is known of the model
            with self.mistakes.noted():
                self.run.data.scan(hashes)
            self.mistakes.raise_all()
        check_files(self.run.validation, self.mistakes)
        return self.bound.index(hashes, self.mistakes, look)

    def batches(self, index: "Index", cache: StageCache, mesh: "Mesh") -> MicroBatches:
        """The micro-batches of this rank, by step."""
        needs = {need for stage in self.live for need in stage.needs}
        order = Order(index.by_bucket, self.run.data.batch_size, self.run.seed)
        cut = (mesh.dp_rank, mesh.dp_size, self.run.parallel.micro_batch_size)
        return MicroBatches(self.bound.dataset(index), order, self.run.conditions, cache, needs, cut)

    @property
    def num_workers(self) -> int:
        """Processes that read ahead; none where all is cached, which costs less than sending it."""
        given = self.run.data.num_workers
        decodes = any(not set(stage.needs).isdisjoint(self.bound.media) for stage in self.live)
        return (min(READERS, usable_cores()) if decodes else 0) if given is None else given

    # Fingerprints

    def weight_hashes(self, verify: bool = False) -> dict[str, str]:
        """Component -> hash over its files."""
        hashes = Hashes(self.memo_folder, verify)
        found = {}
        with Working("hashing the weights"):
            for name in self.shape.components:
                files = self.shape.weight_files(name)
                lines = zip(files, hashes.of_all(files), strict=True)
                found[name] = digest(*(f"{f.parent.name}/{f.name} {h}" for f, h in lines))
        return found

    def base_hash(self, weights: Mapping[str, str]) -> str:
        """Hash everything that a run starts from: the model's weights, and a LoRA of `init_from`."""
        path = self.run.init_from
        files = [] if path is None else start_format(path, self.formats).files(path)
        started = [f"init_from {value}" for value in Hashes(self.memo_folder).of_all(files)]
        return digest(*(f"{name} {value}" for name, value in weights.items()), *started)

    def open_cache(self, weights: Mapping[str, str] | None = None) -> StageCache:
        """Open the cache of this run's cached stages.

        What besides its inputs decides the output of a stage: weights, dtype, settings, code, device.
        """
        kind = device_type()  # before devices counted it was always a CPU, whose entries stay
        device = [] if kind == "cpu" else [f"device {kind}, TF32 off"]
        hashes = self.weight_hashes() if weights is None else weights
        fingerprints = {
            stage.name: digest(
                f"format {CACHE_FORMAT}, stage version {stage.version}",
                self.family_class.name,
                stage.name,
                self.run.model.dtype,
                str(sorted(stage.options.items())),
                *(f"{use} {hashes[use.split('.')[0]]}" for use in stage.uses),
                *device,
            )
            for stage in self.cached
        }
        return StageCache(self.cached, fingerprints, self.run.data.cache)

    def fill_cache(self, index: "Index", cache: StageCache, mesh: "Mesh") -> Filled:
        """Encode what the cache lacks for the data; all ranks share the work."""
        load = partial(self.load_family, str(mesh.device), [])
        return fill(cache, self.bound.dataset(index), self.run.conditions, load, mesh)


def resolve_run(run: "Run", earlier: Claims | None = None) -> ResolvedRun:
    """Resolve a run, as its last phase; one error tells every mistake, except those of its data."""
    return resolve_phases(run, earlier)[-1]


def resolve_first(run: "Run") -> ResolvedRun:
    """Resolve the first phase, its mistakes not raised yet: those of the data are told with them."""
    with Working("reading the model"):
        return ResolvedRun(run.parts()[0])


def resolve_phases(run: "Run", earlier: Claims | None = None) -> list[ResolvedRun]:
    """Resolve each phase of a run; one error tells every mistake of the first with any."""
    found: list[ResolvedRun] = []
    for part in run.parts():
        with Working("reading the model"):
            resolved = ResolvedRun(part, earlier)
        resolved.mistakes.raise_all()
        found.append(resolved)
        earlier = resolved.claims
    return found


@dataclass(frozen=True)
class Prepared:
    """A run that is resolved, phase by phase, and its data."""

    phases: Sequence[ResolvedRun]
    index: "Index"

    @property
    def first(self) -> ResolvedRun:
        return self.phases[0]


def prepare(
    run: "Run",
    mesh: "Mesh",
    check: Callable[[Mistakes], None] | None = None,
    settle: "Callable[[Index], Index] | None" = None,
    verify: bool = False,
) -> Prepared:
    """Resolve a run and find its data; one error on all ranks tells every mistake.

    `check` adds mistakes of another kind; `settle` gives the data their place in a run that goes on with
    them; `verify` hashes every file again.
    """
    first = resolve_first(run)

    def find() -> "Index":
        if check is not None:
            check(first.mistakes)
        index = first.index(verify)
        return index if settle is None else settle(index)

    with Working("reading the data"):
        index = mesh.on_main(find)
    mesh.on_all_ranks(first.mistakes.raise_all)
    if not run.phases:
        return Prepared([first], index)
    phases = mesh.on_all_ranks(lambda: resolve_phases(run))
    for resolved in phases[1:]:
        resolved.data = first.data
    return Prepared(phases, index)


def refuse(run: "Run", mistake: UserError, check: Callable[[Mistakes], None] | None = None) -> None:
    """Raise a mistake, and with it all else that is wrong with a run."""
    first = resolve_first(run)
    first.mistakes.errors.insert(0, mistake)
    if check is not None:
        check(first.mistakes)
    first.index()
