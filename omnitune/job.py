"""What a run comes down to, worked out from its configuration before anything heavy is loaded.

Every command starts here: the family on the meta device, what each rule claims, which stages are cached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .callbacks.sample import check_frames, check_pictures, parse_bucket
from .data import buckets
from .data.cache import Store
from .data.index import Dealt, Index, Samples, deal
from .data.loader import MicroBatches, StageKeys
from .data.order import Order
from .data.sources import scan
from .families import resolve
from .families.base import Family
from .files import Hashes, digest
from .trainable import Claims, Rule, apply_claims, claim, expand
from .types import MEDIA, Bucket, Item, Mistakes, Stage, UserError, split_stages
from .weights import component_folders, init_adapters, lora_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import Run
    from .parallel.mesh import Mesh


CACHE_FORMAT = 1
"""Raised when entries of the cache are written in another way."""


class Job:
    """A run resolved against its model: family, claims, stages.

    What is wrong is in `mistakes`. Raise them before anything but data is asked for; `deal` raises them too.
    """

    def __init__(self, run: "Run", options: "Callable[[type, dict[str, Any], str], Any]"):
        self.run, self.mistakes = run, Mistakes()
        self.options: Any = None
        self.replaced: Mapping[str, Path] = {}
        self.sizes: Sequence[Bucket] | None = None
        self.notes: list[str] = []
        noted = self.mistakes.noted
        with noted():
            self.replaced = component_folders(run.init_from)
        with noted():
            self.family_class = resolve(run.model.family)
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
        with noted():
            self.sizes = buckets.resolve(run.data.buckets, self.shape.limits)
            self.notes += self.shape.fit_sizes(self.sizes)
        with noted():
            self.sample_size()
        with noted():
            check_frames(run.validation, self.shape)
        rules = expand(run.trainable, self.shape.cores, self.family_class.lora_targets)
        with noted():
            self._check_adapters(rules)
        self.claims: Claims = claim(self.shape.components, rules)
        cacheable, live = split_stages(self.shape.stages, self.claims.names)
        if run.data.cache is None:
            cacheable, live = [], list(self.shape.stages)
        self.cached_names, self.live_names = [s.name for s in cacheable], [s.name for s in live]

    def load_family(self, device: str, only: Sequence[str] | None = None) -> Family:
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
        )
        for condition in self.run.conditions:
            condition.prepare(family)
        if self.sizes is not None:
            family.fit_sizes(self.sizes)
        return family

    def _check_adapters(self, rules: Sequence[Rule]) -> None:
        cls = self.family_class
        claimed = {
            (number, name.split(".")[0])
            for name, _ in self.shape.components.named_parameters()
            for number in [i for i, rule in enumerate(rules) if rule.matches(name)][:1]
        }
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
        stated = self.run.validation.size
        return None if stated is None else self.size(stated, "validation.size")

    def size(self, text: str, where: str) -> Bucket:
        """Read a size; raises UserError for one that the model does not take."""
        bucket, limits = parse_bucket(text, where), self.shape.limits
        nearest = Bucket(
            buckets.nearest_frames(bucket.frames, limits),
            *buckets.nearest_sides((bucket.height, bucket.width), limits),
        )
        if nearest != bucket:
            name = self.family_class.name
            raise UserError(f"{where}: {bucket} is not a size that {name} takes; the nearest is {nearest}")
        if limits.one_size and self.sizes and bucket not in self.sizes:
            raise UserError(f"{where}: {bucket}, but this run's positions are of {self.sizes[0]}; use that")
        return bucket

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

    @property
    def memo_folder(self) -> Path:
        """Where hashes of files are remembered: beside the cache, so that all runs on it share them."""
        return (self.run.data.cache or Path(".cache")).absolute()

    def index(self, verify: bool = False) -> Index:
        return self.deal(verify).index(Hashes(self.memo_folder, verify))

    def deal(self, verify: bool = False) -> Dealt:
        """Find the data; raises UserError with every mistake in them and in the run."""
        with self.mistakes.noted():
            found = scan(self.run.data.sources, Path.cwd(), Hashes(self.memo_folder, verify))
            if self.sizes is not None:
                dealt = deal(found, self.sizes, self.run.data)
                self._check_images(found.items)
        with self.mistakes.noted():
            check_pictures(self.run.validation)
        self.mistakes.raise_all()
        return replace(dealt, notes=[*self.notes, *dealt.notes])

    def _check_images(self, items: Sequence[Item]) -> None:
        """Raise UserError for pictures of a source that stand for first frames where that cannot be."""
        stated = next((item for item in items if item.image is not None), None)
        if stated is None:
            return
        if not self.shape.pictures:
            self.notes.append("pictures that sources state for first frames are not used: none are given")
            return
        data = self.run.data
        if not any("first_frame" in stage.needs for stage in self.shape.stages):
            raise UserError(
                f"{stated.where}: {stated.image} stands for a first frame, but {self.run.model.path} is "
                "given the clip's own; set images: null in data.sources"
            )
        if data.crop != "center" or data.window != "head":
            raise UserError(
                f"{stated.where}: {stated.image} stands for the first frame of a clip that is shown from "
                "elsewhere; set data.window: head and data.crop: center, or images: null in data.sources"
            )

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
        files = lora_files(self.run.init_from) if self.run.init_from else []
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

    def samples(self, index: Index) -> Samples:
        return Samples(index, self.run.data, self.run.seed)

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
        return (2 if decodes else 0) if given is None else given

    def trained_family(self, device: str) -> tuple[Family, dict[str, torch.dtype]]:
        """The family with what a step needs and its adapters; the dtype in which each parameter computes."""
        family = self.load_family(device, self.train_components)
        compute = apply_claims(family.components, self.claims, self.run.seed)
        if self.run.init_from is not None:
            init_adapters(family, self.run.init_from, self.claims)
        return family, compute


def place(family: Family, compute: Mapping[str, torch.dtype], mesh: "Mesh") -> None:
    """Put every component that trains on the mesh."""
    for name, module in family.components.items():
        if any(p.requires_grad for p in module.parameters()):
            own = {n.removeprefix(f"{name}."): d for n, d in compute.items() if n.startswith(f"{name}.")}
            mesh.place(module, family.blocks(name), own)
