"""What a model family provides. Families hold networks; they do not know how those are trained."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from ..batch import Batch, Streams
from ..data.sizes import Bucket, Limits
from ..errors import UserError
from ..files import digest
from ..lazily import torch
from ..options import EXTERNAL_MARK, option, plain
from ..random import seed_of
from ..sampling import Medium, Question, Request, Sampling
from ..stages import Stage
from .files import CONFIGS, ModelFolder, quiet

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Noisy:
    """What the denoiser is fed and scored against; conditions edit it before and after noising.

    `u` is the noise level of each element, 0 data and 1 noise: (B,), or broadcastable to the stream with
    inner dims ((B, 1, T, 1, 1)) where levels differ within a sample. A clean first frame is u = 0 there.
    """

    x0: Streams
    noise: Streams
    u: Tensor
    expert: str | None = None
    """The component that these levels belong to, where a family has one for high noise and one for low."""
    mask: Tensor | None = None
    """1 where an element counts in the average, 0 where it leaves it; broadcastable to the stream. A stage
    that pads x0 gives it as `mask`."""
    weight: Tensor | None = None
    """Factor of the error, (B,) or broadcastable like u; does not change the denominator."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further inputs of the network, by name; `channels` by `add_channels`."""
    x: Streams = field(default_factory=dict)
    fed: Tensor = field(default_factory=lambda: torch.empty(0))
    """The timestep as the network is fed it, shaped like u."""
    target: Streams = field(default_factory=dict)
    own: dict[str, "StreamLevel"] = field(default_factory=dict)
    """Streams that have a noise level of their own; the fields above are those of all others."""

    def at(self, stream: str) -> "StreamLevel":
        """The noise level of a stream, its own or the common one."""
        return self.own.get(stream) or StreamLevel(self.u, self.mask, self.weight, self.fed)

    def add_channels(self, channels: Tensor, *, own: bool = False) -> None:
        """Feed channels (B, C, [T,] h, w) beside x: behind those there are, or before, where the published
        network takes them as its `own`."""
        if (there := self.extra.get("channels")) is not None:
            channels = torch.cat([channels, there] if own else [there, channels], dim=1)
        self.extra["channels"] = channels


@dataclass
class StreamLevel:
    """The noise level of one stream, and what else differs with it; fields as those of `Noisy`."""

    u: Tensor
    mask: Tensor | None = None
    weight: Tensor | None = None
    fed: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Published settings: what `init` writes."""

    timesteps: str = "uniform"
    shift: float | Mapping[str, float | str] = 1.0
    """Of flow matching: a number, or the keys of a shift that depends on the number of tokens."""
    guidance: float
    frames: tuple[int, ...]
    area: str
    """Pixels of a frame, height x width."""
    size: str
    """Of samples, frames x height x width."""
    fps: float
    objective: str = "flow_matching"
    one_size: bool = False
    """Whether a run trains at one size alone: its area is stated as that."""

    @property
    def shift_text(self) -> str:
        """As YAML."""
        if isinstance(self.shift, Mapping):
            return f"{{{', '.join(f'{key}: {value}' for key, value in self.shift.items())}}}"
        return f"{self.shift:g}"


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose configuration ships."""

    path: str
    defaults: Defaults | None = None
    """None for models that generate no pixels."""
    conditions: Sequence[Mapping[str, Any]] = ()
    """Those that it is trained with, as `conditions` of a run states them."""
    media: Sequence[str] = ()
    """Options of `validation` that list what its samples are given."""


@dataclass(frozen=True)
class LoadRequest:
    """What a family is made from, and where it is to be."""

    path: str
    """Folder, hub id, or a single file of weights."""
    device: torch.device
    """On "meta" a family is made from configuration files alone."""
    dtype: torch.dtype
    options: Any = None
    """What `model.options` says; None: the defaults."""
    revision: str | None = None
    config: str | None = None
    """Folder or hub id of everything that a single file lacks; None where `path` is no file."""
    replaced: Mapping[str, Path] = field(default_factory=dict)
    """Component -> folder that takes the place of the model's own."""
    without: Sequence[str] | None = None
    """Where a step trains: prefixes of parameters whose stages are cached, which need not be there."""


@option
class NoOptions:
    """Of a family without options."""


class ConditionHooks(Protocol):
    """A condition, as far as families know it (`conditions.base.Condition`)."""

    @property
    def name(self) -> str: ...
    def prepare(self, family: Any) -> None: ...
    def media(self, family: Any) -> Sequence[Medium]: ...
    def stages(self, family: Any) -> list[Stage]: ...
    def sampling(self, family: Any, request: Sampling) -> Sampling: ...
    def exports(self, family: Any) -> Mapping[str, Any]: ...


def _code_of(condition: ConditionHooks) -> str:
    """Hash the module of a condition: what its stages give may have changed where the module did."""
    file = sys.modules[type(condition).__module__].__file__
    return digest(Path(file).read_bytes().hex()) if file else ""


def _check_list(condition: ConditionHooks, method: str, found: Any, kind: type) -> None:
    """Raise UserError where a method of a condition does not give a list of a kind."""
    if not isinstance(found, list | tuple) or not all(isinstance(one, kind) for one in found):
        raise UserError(
            f"conditions: {method}() of {condition.name} gives {found!r}, not a list of {kind.__name__}"
        )


def _keyed(condition: ConditionHooks, family: "Family") -> list[Stage]:
    """Stages of a condition; all that one of another package is and reads counts in the keys of the cache."""
    stages = condition.stages(family)
    if EXTERNAL_MARK not in condition.name:
        return stages
    own = {"condition": plain(condition), "code": _code_of(condition)}
    return [
        replace(
            one,
            options={**one.options, **own, "needs": one.needs, "gives": one.gives},
        )
        for one in stages
    ]


class Family(ABC):
    """A pretrained model as named components, and the stages that turn a sample into tensors."""

    name: ClassVar[str]
    core: ClassVar[str]
    """The component whose forward the objective trains."""
    tasks: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]]
    licence: ClassVar[str]
    """Licence note of the published weights."""

    variants: ClassVar[Mapping[str, str]]
    """Ways in which checkpoints differ, each with a published one whose configuration ships."""
    Options: ClassVar[Any] = NoOptions
    """Dataclass of what `model.options` may say."""
    text_option: ClassVar[str | None] = None
    """The option that says to how many tokens a caption is cut, where there is one."""
    libraries: ClassVar[Sequence[str]] = ("transformers",)
    """Those that load its networks, whose progress bars stay off the terminal."""
    adapter_components: ClassVar[tuple[str, ...]]
    """Components whose LoRA the published pipeline can load."""
    autoencoder: ClassVar[str | None] = None
    """The component that `reconstruct` needs; None where pixels are not decoded."""
    formats: ClassVar[tuple[str, ...]]
    """Formats (`omnitune.export`, or `package.module:Class`) that `export` writes, the usual one first, and
    that `init_from` reads."""
    trained_on: ClassVar[str] = "captions"
    """The kind of data, as `data.name` calls it."""
    request_type: ClassVar[type[Request]]
    """What `sample` takes."""

    configs: ClassVar[Traversable] = CONFIGS
    """Where the configurations of `variants` are, in files as `ModelFolder.shipped` reads."""

    def __init__(self, request: LoadRequest):
        self.request, self.device, self.dtype = request, request.device, request.dtype
        self.options: Any = self.Options() if request.options is None else request.options
        self.files = self.open_files(request)
        if self.device.type != "meta":
            self.files.fetch()  # its own configurations, not those that ship with us
        self.components = torch.nn.ModuleDict()
        """The networks that are loaded, by name."""
        self.extras: set[str] = set()
        """Components that are in no checkpoint: those of `add_component`."""
        self.conditions: list[ConditionHooks] = []
        self._changes: dict[str, list[Callable[[Any], object]]] = {}

    @classmethod
    def load(
        cls,
        path: str,
        device: str,
        dtype: torch.dtype,
        *,
        only: Sequence[str] | None = None,
        options: Any = None,
        revision: str | None = None,
        config: str | None = None,
        replaced: Mapping[str, Path] | None = None,
        without: Sequence[str] | None = None,
    ) -> Self:
        """Load components, by default all; `LoadRequest` says what the rest is."""
        quiet(*cls.libraries)
        family = cls(
            LoadRequest(path, torch.device(device), dtype, options, revision, config, replaced or {}, without)
        )
        # What conditions add is not there yet, and is never loaded.
        family.fetch([name for name in family.parts if only is None or name in only])
        return family

    @abstractmethod
    def open_files(self, request: LoadRequest) -> ModelFolder:
        """The model's files; nothing is fetched yet."""

    @classmethod
    def checkpoint(cls, variant: str | None = None) -> Checkpoint:
        """The published checkpoint of a variant, by default of the first, and its published settings."""
        path = cls.variants[variant or next(iter(cls.variants))]
        shipped = ModelFolder(path, configs=cls.configs).shipped or {}
        defaults = Defaults(**shipped["defaults"]) if "defaults" in shipped else None
        return Checkpoint(path, defaults, shipped.get("conditions", ()), shipped.get("media", ()))

    @property
    @abstractmethod
    def own_stages(self) -> list[Stage]:
        """The stages that it has whatever its conditions are."""

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """What its parts are for: role -> parameter prefixes, disjoint and exhaustive."""
        return {name: (name,) for name in self.components}

    @property
    def always_trained(self) -> Mapping[str, Sequence[str]]:
        """Option -> parameters that train because of it, also where no rule names them."""
        return {}

    @property
    def cores(self) -> Sequence[str]:
        """Components whose forward the objective trains: more than one where experts share the levels."""
        return (self.core,)

    def add_condition(self, condition: ConditionHooks) -> None:
        """Let a condition change this copy of the model, and take up its stages and media."""
        condition.prepare(self)
        _check_list(condition, "media", condition.media(self), Medium)
        _check_list(condition, "stages", condition.stages(self), Stage)
        self.conditions.append(condition)

    @property
    def stages(self) -> list[Stage]:
        """From what a sample brings to what `denoise` or `logits` reads: its own, then its conditions'."""
        return [*self.own_stages, *(stage for one in self.conditions for stage in _keyed(one, self))]

    @property
    def media(self) -> list[Medium]:
        """What samples bring for its conditions."""
        return [medium for condition in self.conditions for medium in condition.media(self)]

    @property
    def export_notes(self) -> dict[str, str]:
        """What its conditions have the metadata of exported weights say: name -> JSON."""
        told = {condition.name: condition.exports(self) for condition in self.conditions}
        try:
            return {name: json.dumps(values) for name, values in told.items() if values}
        except (TypeError, ValueError) as error:
            raise UserError(
                f"conditions: exports() gives what JSON cannot spell ({error}), in {told!r}; give texts, "
                "numbers, lists and mappings"
            ) from None

    def fit_sizes(self, sizes: Sequence[Bucket]) -> list[str]:
        """Fit the weights, loaded now or later, to the sizes of a run; what the user should know of it."""
        return []

    def missing_condition(self) -> str | None:
        """The error for weights that want a condition which the run does not have; None for others."""
        return None

    @property
    @abstractmethod
    def parts(self) -> Sequence[str]:
        """The networks that this checkpoint has."""

    @abstractmethod
    def load_component(self, name: str) -> nn.Module:
        """A network with its weights, or on the meta device as they are published."""

    def fetch(self, names: Sequence[str]) -> None:
        """Load further components, into the same dtype and device."""
        for name in names:
            if name not in self.components:
                module = self.load_component(name).requires_grad_(False).eval().to(self.device)
                self.components[name] = self.changed(name, module)

    def drop(self, names: Sequence[str]) -> None:
        """Forget components and free their memory, but those that no file has."""
        for name in names:
            if name in self.components and name not in self.extras:
                del self.components[name]

    def change(self, name: str, how: Callable[[Any], object]) -> None:
        """Change a component in place: now if it is loaded, and whenever it is loaded later."""
        if name not in self.parts and name not in self.extras:
            there = ", ".join(self.parts)
            raise UserError(f"conditions: {self.name} has no {name} to change; there are {there}")
        self._changes.setdefault(name, []).append(how)
        if name in self.components:
            how(self.components[name])

    def changed(self, name: str, module: nn.Module) -> nn.Module:
        """A component as it was published, with the changes that were asked for."""
        for how in self._changes.get(name, ()):
            how(module)
        return module

    def add_component(self, name: str, make: Callable[[], nn.Module]) -> None:
        """Add a module that is in no checkpoint, such as a learned context; rules can claim it by its name.

        It begins the same on every rank and in every later start: what `make` draws is seeded by the name.
        A frozen one counts in the keys of the cache by its name alone, so a stage that uses it says in its
        options what the module was made with.
        """
        assert name not in self.components, f"{name} is a component already"
        # On the CPU: the same numbers for every device, and no other generator is touched.
        place = "meta" if self.device.type == "meta" else "cpu"
        with torch.random.fork_rng(devices=[]), torch.device(place):
            torch.default_generator.manual_seed(seed_of("component", name) % 2**63)
            self.components[name] = make().requires_grad_(False).eval().to(self.device, self.dtype)
        self.extras.add(name)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put all components in evaluation mode for a while."""
        modes = {module: module.training for module in self.components.modules()}
        self.components.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    @abstractmethod
    def weight_files(self, component: str) -> list[Path]:
        """The files that decide what a component computes (weights, configuration, vocabulary).

        There is none of `extras`.
        """

    @abstractmethod
    def check_weights(self, components: Sequence[str]) -> list[str]:
        """Raise UserError for a file that a folder lacks or that does not fit its configuration.

        Networks are compared as they are published; `extras` have no files.
        Reads only the headers of weights and fetches nothing. Returns the components that loading would
        fetch from the hub.
        """

    def adapter_files(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """File -> the component, as the pipeline's loader calls it -> ours, whose adapter it holds."""
        raise UserError(f"family {self.name} exports no adapters")

    def cut_captions(self, captions: Sequence[str]) -> list[int]:
        """Indices of captions that are longer than the text stage reads, and are cut; none by default."""
        return []

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Send pixels (B, 3, T, H, W) in [-1, 1] through the autoencoder and back, with nothing random."""
        raise UserError(f"family {self.name} has no autoencoder to reconstruct pixels with")

    def compute_dtype(self, component: str) -> torch.dtype:
        """The dtype in which a component computes, by the run's policy and the published pipeline's."""
        return self.dtype

    @property
    def limits(self) -> Limits:
        """The sizes of pixels that samples may have; a family that is trained on captions says."""
        raise UserError(f"model.family: {self.name} states no sizes of samples; give it a property limits")

    def blocks(self, component: str) -> list[nn.Module]:
        """The repeated layers of a loaded component, for sharding, checkpointing and compiling."""
        module = self.components[component]
        names = getattr(module, "_repeated_blocks", None) or getattr(module, "_no_split_modules", None) or ()
        return [m for m in module.modules() if type(m).__name__ in names]

    @abstractmethod
    def sample(self, requests: Sequence[Any], progress: bool = False) -> list[Any]:
        """Generate as the published pipeline does: uint8 (T, H, W, 3) each of `Sampling`, T is 1 for images;
        the answer to each `Question`."""


class Responder(Family):
    """A family whose core answers in text."""

    trained_on = "conversations"
    request_type = Question
    asked_as: Any = None
    """Options of the conversations that it is trained on; questions are asked by them."""

    @abstractmethod
    def conversation_encoder(self, options: Any) -> Any:
        """Make what turns a conversation into tokens, labels and pixels, by the model's own processor."""

    def check_packing(self) -> None:
        """Raise UserError where conversations cannot share a row."""

    def check_length(self, tokens: int) -> None:
        """Raise UserError where rows of so many tokens are longer than the core can be given."""

    @abstractmethod
    def token_losses(self, batch: Batch, *, chunk: int, label_smoothing: float) -> Tensor:
        """(B,): the cross-entropy of each row, summed over the tokens that are learned.

        Logits of at most `chunk` tokens exist at once.
        """


class Denoiser(Family):
    """A family whose core removes noise."""

    request_type = Sampling
    takes: Sequence[str] = ()
    """Frames of a clip that these weights can be given: `first`, `last`, `both`."""
    frames_required: bool = False
    """Whether they are always given frames."""
    image_pipeline_class: ClassVar[Any] = None
    """The published pipeline that is given frames."""
    alphas_cumprod: Tensor | None = None
    """The discrete variance-preserving schedule the model was pretrained on; None if it was born a flow."""
    prediction_type: str | None = None
    """The objective that these weights predict for, where their scheduler says and no other will do."""
    streams_with_own_level: ClassVar[tuple[str, ...]] = ()
    """Streams whose noise level is drawn apart from that of the others: sound beside a clip."""

    def path(self, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma of x_t = alpha x_0 + sigma noise on the straight path, and the timestep fed for u.

        Asked once for each level; `x0` holds the streams that have it.
        """
        return 1 - u, u, 1000 * u

    @property
    def experts(self) -> Mapping[str, tuple[float, float]]:
        """The range of u of each loaded core; empty where one core takes all levels."""
        return {}

    def frame_stages(self, frames: str, *, dropout: bool) -> list[Stage]:
        """From the `first` frame, the `last` or `both` to what `with_frames` reads.

        With `dropout` an empty picture stands in the place of frames at times.
        """
        return []

    def with_frames(self, noisy: Noisy, batch: Batch, frames: str, given: Tensor, kept: Tensor) -> Noisy:
        """Put given frames where the network expects them, before noise is mixed in.

        Rows that are not `given` (B,) train text-to-video; of those that are and not `kept` (B,) an empty
        picture stands in the place of frames.
        """
        takes = ", ".join(self.takes) or "no frames"
        raise UserError(f"conditions: {self.name} takes {takes} and has no with_frames; give it one")

    def widen(self, inputs: int, outputs: int = 0) -> None:
        """Have the network take further channels behind its own, and give further ones as stream `further`.

        Weights of the new channels are zero, so that at first nothing changes; a checkpoint that has the
        channels already is left as it is.
        """
        raise UserError(f"conditions: family {self.name} takes no further channels; leave the condition out")

    @abstractmethod
    def num_tokens(self, x0: Streams) -> int:
        """Length of the sequence that the core sees, for shifts that depend on the resolution."""

    @abstractmethod
    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        """Call the core exactly as the published pipeline does."""

    def conditioned(self, request: Sampling) -> Sampling:
        """A request with what the conditions make of its media."""
        for condition in self.conditions:
            request = condition.sampling(self, request)
            if not isinstance(request, Sampling):
                raise UserError(
                    f"conditions: sampling() of {condition.name} gives {request!r}, not the request"
                )
        return request
