"""What a model family provides. Families hold networks; they do not know how those are trained."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..batch import Batch, Streams
from ..data.sizes import Bucket, Limits
from ..errors import UserError
from ..stages import Stage
from .layout import Layout


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
    """Further inputs of the network, by name."""
    x: Streams = field(default_factory=dict)
    fed: Tensor = field(default_factory=lambda: torch.empty(0))
    """The timestep as the network is fed it, shaped like u."""
    target: Streams = field(default_factory=dict)
    own: dict[str, "StreamLevel"] = field(default_factory=dict)
    """Streams that have a noise level of their own; the fields above are those of all others."""

    def at(self, stream: str) -> "StreamLevel":
        """The noise level of a stream, its own or the common one."""
        return self.own.get(stream) or StreamLevel(self.u, self.mask, self.weight, self.fed)


@dataclass
class StreamLevel:
    """The noise level of one stream, and what else differs with it; fields as those of `Noisy`."""

    u: Tensor
    mask: Tensor | None = None
    weight: Tensor | None = None
    fed: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Sampling:
    """What to generate: one prompt, its size and its seed."""

    prompt: str
    negative_prompt: str
    bucket: Bucket
    steps: int
    guidance: float
    seed: int
    fps: float = 16.0
    frames: Mapping[str, Any] = field(default_factory=dict)
    """Given frames in the bucket's size, (H, W, 3) in uint8: `first_frame`, `last_frame`."""


@dataclass(frozen=True)
class Question:
    """What to answer, and about which picture."""

    prompt: str
    image: Path | None = None
    max_tokens: int = 64


@dataclass(frozen=True)
class Defaults:
    """Published settings: what `init` writes."""

    timesteps: str
    shift: float | Mapping[str, float | str]
    """Of the objective: a number, or the keys of a shift that depends on the number of tokens."""
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
    frames: str | None
    """Setting of `frame_conditioning` that it is trained with."""
    defaults: Defaults | None
    """None for models that generate no pixels."""


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
    Options: ClassVar[Any]
    """Dataclass of what `model.options` may say."""
    adapter_components: ClassVar[tuple[str, ...]]
    """Components whose LoRA the published pipeline can load."""
    autoencoder: ClassVar[str | None] = None
    """The component that `reconstruct` needs; None where pixels are not decoded."""
    exports_whole: ClassVar[bool] = True
    """Whether `export` is given all of a component that trains, or the parameters that train alone."""
    layout: ClassVar[Layout | None] = None
    """Of `init_from`; None: as the pipelines of diffusers are."""
    trained_on: ClassVar[str] = "captions"
    """The kind of data, as `data.name` calls it."""

    dtype: torch.dtype
    components: nn.ModuleDict
    """The networks that are loaded, by name."""

    @classmethod
    @abstractmethod
    def checkpoint(cls, variant: str | None = None) -> Checkpoint:
        """The published checkpoint of a variant, by default of the first, and its published settings."""

    @property
    @abstractmethod
    def stages(self) -> list[Stage]:
        """From what a sample brings to what `denoise` or `logits` reads; conditions may add some."""

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """What its parts are for: role -> parameter prefixes, disjoint and exhaustive."""
        return {name: (name,) for name in self.components}

    @property
    def always_trained(self) -> Mapping[str, Sequence[str]]:
        """Option -> parameters that train because of it, also where no rule names them."""
        return {}

    @property
    def pictures(self) -> tuple[str, ...]:
        """Frames of a clip that the model is given: `first_frame`, `last_frame`."""
        return ()

    @property
    def frames_optional(self) -> bool:
        """Whether the model also generates from text alone."""
        return True

    @property
    def cores(self) -> Sequence[str]:
        """Components whose forward the objective trains: more than one where experts share the levels."""
        return (self.core,)

    def give_frames(self, frames: str, *, optional: bool, dropout: bool) -> None:
        """Take frames of a clip as a further input: its `first`, its `last` or `both`.

        Raises UserError if these weights cannot; `optional` has samples without, `dropout` with an empty
        picture in their place.
        """
        raise UserError(f"conditions: family {self.name} is given no frames; leave frame_conditioning out")

    def fit_sizes(self, sizes: Sequence[Bucket]) -> list[str]:
        """Fit the weights, loaded now or later, to the sizes of a run; what the user should know of it."""
        return []

    def lacking(self) -> str | None:
        """What to say if these weights want a condition that was not prepared."""
        return None

    @classmethod
    @abstractmethod
    def load(
        cls,
        path: str,
        device: str,
        dtype: torch.dtype,
        *,
        only: Sequence[str] | None = None,
        options: Any = None,
        revision: str | None = None,
        replaced: Mapping[str, Path] | None = None,
        without: Sequence[str] | None = None,
    ) -> Self:
        """Load components from a folder or hub id; on "meta" from configuration files alone.

        `replaced` has folders that take the place of the model's own, by component. `without` is given where
        a step trains: prefixes of parameters whose stages are cached, which need not be there.
        """

    @abstractmethod
    def fetch(self, names: Sequence[str]) -> None:
        """Load further components, into the same dtype and device."""

    @abstractmethod
    def drop(self, names: Sequence[str]) -> None:
        """Forget components and free their memory."""

    @abstractmethod
    def weight_files(self, component: str) -> list[Path]:
        """The files that decide what a component computes (weights, configuration, vocabulary)."""

    @abstractmethod
    def check_weights(self, components: Sequence[str]) -> list[str]:
        """Raise UserError for a file that a folder lacks or that does not fit its configuration.

        Reads only the headers of weights and fetches nothing. Returns the components that loading would
        fetch from the hub.
        """

    def adapter_files(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """File -> the component, as the pipeline's loader calls it -> ours, whose adapter it holds."""
        raise UserError(f"family {self.name} exports no adapters")

    def cut_captions(self, captions: Sequence[str]) -> list[int]:
        """Places of captions longer than the text stage reads; the tokenizer alone tells. None by default."""
        return []

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Send pixels (B, 3, T, H, W) in [-1, 1] through the autoencoder and back, with nothing random."""
        raise UserError(f"family {self.name} has no autoencoder to reconstruct pixels with")

    def compute_dtype(self, component: str) -> torch.dtype:
        """The dtype in which a component computes, by the run's policy and the published pipeline's."""
        return self.dtype

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the configuration was read, and whether it was verified."""

    @property
    def limits(self) -> Limits:
        """The sizes of pixels that samples may have; a family that is trained on captions says."""
        raise NotImplementedError(f"{self.name} is trained on {self.trained_on}, which have no sizes")

    @abstractmethod
    def blocks(self, component: str) -> list[nn.Module]:
        """The repeated layers of a loaded component, for sharding, checkpointing and compiling."""

    @abstractmethod
    def sample(self, wanted: Sequence[Any], progress: bool = False) -> list[Any]:
        """Generate as the published pipeline does: uint8 (T, H, W, 3) each of `Sampling`, T is 1 for images;
        the answer to each `Question`."""

    @abstractmethod
    def export(
        self,
        folder: Path,
        adapters: Mapping[str, Mapping[str, Tensor]],
        full: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Write trained weights in the published layout: adapters as peft states, and whole components."""

    def export_merged(
        self,
        folder: Path,
        adapters: Mapping[str, Mapping[str, Tensor]],
        full: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Write whole networks with the adapters added to their weights."""
        raise UserError(
            f"--merged: family {self.name} exports adapters, which its pipeline fuses itself "
            "(load_lora_weights, fuse_lora, save_pretrained); leave it out"
        )


class Responder(Family):
    """A family whose core answers in text."""

    trained_on = "conversations"

    @abstractmethod
    def chat(self, options: Any) -> Any:
        """What turns a conversation into tokens, labels and pixels, through the model's own processor."""

    def check_packing(self) -> None:
        """Raise UserError where conversations cannot share a row."""

    @abstractmethod
    def token_losses(self, batch: Batch, *, chunk: int, label_smoothing: float) -> Tensor:
        """(B,): the cross-entropy of each row, summed over the tokens that are learned.

        Logits of at most `chunk` tokens exist at once.
        """


class Denoiser(Family):
    """A family whose core removes noise."""

    alphas_cumprod: Tensor | None = None
    """The discrete variance-preserving schedule the model was pretrained on; None if it was born a flow."""

    streams_with_own_level: ClassVar[tuple[str, ...]] = ()
    """Streams whose noise level is drawn apart from that of the others: sound beside a clip."""

    @property
    @abstractmethod
    def limits(self) -> Limits: ...

    def path(self, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma of x_t = alpha x_0 + sigma noise on the straight path, and the timestep fed for u.

        Asked once for each level; `x0` holds the streams that have it.
        """
        return 1 - u, u, 1000 * u

    @property
    def experts(self) -> Mapping[str, tuple[float, float]]:
        """The range of u of each loaded core; empty where one core takes all levels."""
        return {}

    def with_frames(self, noisy: Noisy, batch: Batch, given: Tensor, kept: Tensor) -> Noisy:
        """Put given frames where the network expects them, before noise is mixed in.

        Rows that are not `given` (B,) train text-to-video; of those that are and not `kept` (B,) an empty
        picture stands in the place of frames.
        """
        raise NotImplementedError(f"{self.name} is given no frames")

    @abstractmethod
    def num_tokens(self, x0: Streams) -> int:
        """Length of the sequence that the core sees, for shifts that depend on the resolution."""

    @abstractmethod
    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        """Call the core exactly as the published pipeline does."""
