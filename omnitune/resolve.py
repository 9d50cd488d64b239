"""What a run comes down to, worked out from its configuration before anything heavy is loaded.

Every command starts here: the family on the meta device, what each rule claims, which stages are cached.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .data.cache import Store
from .data.captions.index import Index
from .data.conversations.options import Conversations
from .data.loader import READERS, MicroBatches, StageKeys, usable_cores
from .data.order import Order
from .data.sizes import Bucket
from .dataset_kinds import Captions, Dialogues, look_through
from .errors import Mistakes, UserError
from .export.start import component_folders, init_adapters, lora_files
from .families import resolve
from .families.base import Family
from .files import Hashes, digest
from .memory.reach import learning_blocks
from .stages import MEDIA, Stage, split_stages
from .trainable.adapters import apply_claims, claim_always
from .trainable.freezing import spell_rules
from .trainable.parameters import ParameterIndex
from .trainable.rules import Claims, Rule, claim, match

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config.run import Run
    from .parallel.mesh import Mesh


CACHE_FORMAT = 1
"""Raised when entries of the cache are written in another way."""


class Job:
    """A run resolved against its model: family, claims, stages.

    What is wrong is in `mistakes`. Raise them before anything but data is asked for; `deal` raises them too.
    """

    def __init__(
        self,
        run: "Run",
        options: "Callable[[type, dict[str, Any], str], Any]",
        earlier: Claims | None = None,
    ):
        self.run, self.mistakes, self.earlier = run, Mistakes(), earlier
        self.options: Any = None
        self.replaced: Mapping[str, Path] = {}
        self.found: Captions | Dialogues | None = None
        noted = self.mistakes.noted
        with noted():
            self.family_class = resolve(run.model.family)
            with noted():
                self.replaced = component_folders(run.init_from, self.formats)
            with noted():  # the rest is looked at as the family's defaults make it
                self.options = options(self.family_class.Options, run.model.options, "model.options")
            self.shape: Family = self.load_family("meta")
            if lack := self.shape.lacking():
                self.mistakes.errors.append(UserError(lack))
            self._match()

    def _match(self) -> None:
        """Hold every part of the run against the model."""
        run, noted = self.run, self.mistakes.noted
        with noted():
            run.objective.prepare(self.shape)
        self.found = self._find_material()
        trainable = run.trainable
        assert trainable is not None, run.name
        family, targets = self.shape, self.family_class.lora_targets
        rules = spell_rules(trainable, run, family.components, family.roles, family.cores, targets)
        with noted():
            self._check_adapters(rules)
        self.claims: Claims = claim(self.shape.components, rules, self.shape.roles)
        stated = run.statements(family.roles)
        self.claims = claim_always(self.claims, family.always_trained, stated, family.roles)
        if self.earlier is not None:
            self.claims = self.claims.after(self.earlier)
        cacheable, live = split_stages(self.shape.stages, self.claims.all_trained.names)
        if run.data.cache is None:
            cacheable, live = [], list(self.shape.stages)
        self.cached_names, self.live_names = [s.name for s in cacheable], [s.name for s in live]
        with noted():
            self._check_memory()

    def _check_memory(self) -> None:
        if self.run.memory.checkpointing != "none" and not self.learning_blocks(self.shape):
            raise UserError(
                f"memory.checkpointing: {self.run.memory.checkpointing} has no effect: no gradient flows "
                f"through a repeated layer of {self.shape.name} here; leave it out"
            )

    def _find_material(self) -> "Captions | Dialogues":
        """What the run is trained on; raises UserError where that is of another kind than the model's."""
        data, family = self.run.data, self.shape
        if data.name != family.trained_on:
            raise UserError(
                f"data.name: {data.name}, but family {family.name} is trained on {family.trained_on}; set "
                f"name: {family.trained_on}, with the options of that"
            )
        if isinstance(data, Conversations):
            return Dialogues(self.run, data, family, self.mistakes, self.memo_folder)
        return Captions(self.run, data, family, self.mistakes)

    @property
    def material(self) -> "Captions | Dialogues":
        """What the run is trained on; mistakes in model or data kind were raised before it is asked for."""
        assert self.found is not None
        return self.found

    @property
    def notes(self) -> list[str]:
        """What the user should know of the model beside the data, one line each."""
        return self.material.notes

    @property
    def formats(self) -> Sequence[str]:
        """Those in which `init_from` may be."""
        return (self.run.init_format,) if self.run.init_format else self.family_class.formats

    def load_family(
        self, device: str, only: Sequence[str] | None = None, without: Sequence[str] | None = None
    ) -> Family:
        """Load components; parameters under the prefixes `without` are not needed, None: all are."""
        dtype: torch.dtype = getattr(torch, self.run.model.dtype)
        model = self.run.model
        family = self.family_class.load(
            model.path,
            device,
            dtype,
            only=only,
            options=self.options,
            revision=model.revision,
            replaced=self.replaced,
            without=without,
        )
        for condition in self.run.conditions:
            condition.prepare(family)
        if self.found is not None:
            self.found.fit(family)
        return family

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

    def sample_size(self) -> Bucket | None:
        """The size that `validation.size` states, if any."""
        return self.material.sample_size()

    def size(self, text: str, where: str) -> Bucket:
        """Read a size; raises UserError for one that the model does not take."""
        return self.material.size(text, where)

    def stages(self, family: Family, names: Sequence[str]) -> list[Stage]:
        return [stage for stage in family.stages if stage.name in names]

    @cached_property
    def cached(self) -> list[Stage]:
        return self.stages(self.shape, self.cached_names)

    @cached_property
    def live(self) -> list[Stage]:
        return self.stages(self.shape, self.live_names)

    @property
    def train_components(self) -> list[str]:
        """What a step needs in memory: what trains, the core, and what live stages use."""
        used = {use.split(".")[0] for stage in self.live for use in stage.uses}
        trained = self.claims.components
        cores = self.shape.cores if trained.isdisjoint(self.shape.cores) else ()
        wanted = {*cores, *trained, *used}
        return [name for name in self.shape.components if name in wanted]

    def learning_blocks(self, family: Family) -> dict[str, list[nn.Module]]:
        """Component -> the repeated layers that gradients flow through in a step."""
        components = {n: module for n, module in family.components.items() if n in self.train_components}
        return learning_blocks(components, family.blocks, self.shape.stages, self.claims.names)

    @property
    def memo_folder(self) -> Path:
        """Where hashes of files are remembered: beside the cache, so that all runs on it share them."""
        return (self.run.data.cache or Path(".cache")).absolute()

    def index(self, verify: bool = False) -> Index:
        found: Index = self.deal(verify).index(Hashes(self.memo_folder, verify))
        return found

    def deal(self, verify: bool = False) -> Any:
        """Find the data; raises UserError with every mistake in them and in the run."""
        memo = Hashes(self.memo_folder, verify)
        if self.found is None:  # nothing is known of the model
            with self.mistakes.noted():
                look_through(self.run.data, memo)
            self.mistakes.raise_all()
        return self.material.deal(memo, self.mistakes)

    def weights_fingerprint(self, components: Sequence[str], verify: bool = False) -> dict[str, str]:
        """Hash over the files of each component."""
        hashes = Hashes(self.memo_folder, verify)
        found = {}
        for name in components:
            files = self.shape.weight_files(name)
            lines = zip(files, hashes.of_all(files), strict=True)
            found[name] = digest(*(f"{f.parent.name}/{f.name} {h}" for f, h in lines))
        return found

    @cached_property
    def weights(self) -> dict[str, str]:
        """Component -> hash of its files; `share_weights` has the main rank alone read them."""
        return self.weights_fingerprint(list(self.shape.components))

    def share_weights(self, mesh: "Mesh", verify: bool = False) -> None:
        self.weights = mesh.together(lambda: self.weights_fingerprint(list(self.shape.components), verify))

    @property
    def base(self) -> str:
        """A hash over everything that a run starts from: the model's weights, and a LoRA of `init_from`."""
        files = lora_files(self.run.init_from, self.formats)
        started = [f"init_from {value}" for value in Hashes(self.memo_folder).of_all(files)]
        return digest(*(f"{name} {value}" for name, value in self.weights.items()), *started)

    def stage_fingerprints(self) -> dict[str, str]:
        """What besides its inputs decides the output of each cached stage: weights, dtype, settings, code."""
        weights = self.weights
        return {
            stage.name: digest(
                f"format {CACHE_FORMAT}, stage version {stage.version}",
                self.family_class.name,
                stage.name,
                self.run.model.dtype,
                str(sorted(stage.options.items())),
                *(f"{use} {weights[use.split('.')[0]]}" for use in stage.uses),
            )
            for stage in self.cached
        }

    @cached_property
    def keys(self) -> StageKeys:
        return StageKeys(self.cached, self.stage_fingerprints())

    @cached_property
    def stores(self) -> dict[str, Store]:
        if self.run.data.cache is None:
            return {}
        root = self.run.data.cache.absolute()
        return {s.name: Store(root / f"{s.name}-{self.keys.fingerprints[s.name][:16]}") for s in self.cached}

    def samples(self, index: Any) -> Any:
        return self.material.samples(index)

    def order(self, index: Index) -> Order:
        return Order(index.by_bucket, self.run.data.batch_size, self.run.seed)

    def batches(self, index: Index, mesh: "Mesh") -> MicroBatches:
        needs = {need for stage in self.live for need in stage.needs}
        cut = (mesh.dp_rank, mesh.dp_size, self.run.parallel.micro_batch_size)
        return MicroBatches(
            self.samples(index), self.order(index), self.run.conditions, self.keys, self.stores, needs, cut
        )

    @property
    def num_workers(self) -> int:
        """Reading cached tensors costs less than sending them between processes."""
        given = self.run.data.num_workers
        decodes = any(not set(stage.needs).isdisjoint(MEDIA) for stage in self.live)
        return (min(READERS, usable_cores()) if decodes else 0) if given is None else given

    def trained_family(self, device: str) -> tuple[Family, dict[str, torch.dtype]]:
        """The family with what a step needs and its adapters; the dtype in which each parameter computes."""
        encoded = tuple(use for stage in self.cached for use in stage.uses)
        family = self.load_family(device, self.train_components, without=encoded)
        compute = apply_claims(family.components, self.claims, self.run.seed)
        if self.run.init_from is not None:
            later = self.earlier is not None
            init_adapters(family, self.run.init_from, self.claims, self.formats, later)
        return family, compute


def place(family: Family, compute: Mapping[str, torch.dtype], mesh: "Mesh") -> None:
    """Put every component that trains on the mesh."""
    for name, module in family.components.items():
        if any(p.requires_grad for p in module.parameters()):
            own = {n.removeprefix(f"{name}."): d for n, d in compute.items() if n.startswith(f"{name}.")}
            mesh.place(module, family.blocks(name), own)
