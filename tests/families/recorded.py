"""One call of a published pipeline and one training step, side by side, at the door of the denoiser."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor, nn

from omnitune import config
from omnitune.data.sizes import Bucket
from omnitune.families import REGISTRY, resolve
from omnitune.families.base import Denoiser, Family, Noisy
from omnitune.objectives.diffusion import Diffusion, expand
from omnitune.random import Draw
from omnitune.testing.runs import small_run, write_run
from omnitune.testing.tiny import build_tiny
from omnitune.testing.training import start_training
from omnitune.trainable.adapters import apply_claims
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.rules import Claims, Lora, LoraEverywhere, Rule, claim

SIDES, LATENT_FRAMES, FPS = 64, 3, 12
CAPTIONS = ("rocket", "an airplane flies over the sea, seen from below, and a cat plays with a ball of wool")
EVEN_CAPTIONS = {"cogview4": ("rocket", "two boats on a lake")}
"""Of families whose pipeline pads the captions of a batch together: as long as each other, padded alone."""
GUIDANCE = 3.0
IGNORED = {"attention_kwargs", "joint_attention_kwargs", "return_dict"}
"""Keywords that carry nothing to a denoiser without adapters."""
KEYWORDS = {"first_frame": "image", "last_frame": "last_image"}
WITHOUT_CHANCE: dict[str, dict[str, Any]] = {"cogvideox": {"image_noise": False}}
"""Options that switch off what training draws beside noise and posteriors, of families given frames."""
ONE_EACH = {"cogvideox", "hunyuan_video"}
"""Families whose pipeline wants a picture for each caption."""


@dataclass(frozen=True)
class Case:
    """A way to train a family: one of its variants, given frames or not."""

    family: str
    variant: str
    frames: str | None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.family, self.variant, self.frames)))


def cases() -> Iterator[Case]:
    """Variants of every registered family that differ when small, with every setting of frames they take."""
    for name in REGISTRY:
        family: Any = resolve(name)
        if not issubclass(family, Denoiser):
            continue
        known: list[Any] = []
        for variant, path in family.variants.items():
            shape = family.load(path, "meta", torch.float32, only=[])
            parts = shape.files.shipped["components"].values()
            small = [part["config"] | part.get("small", {}) for part in parts if "config" in part]
            if (described := [shape.files.pipeline_config, *small]) in known:
                continue
            known.append(described)
            optional = [] if shape.frames_required else [None]
            for frames in (*optional, *shape.takes):
                yield Case(name, variant, frames)


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward call was given, by name; nothing is left out but what is None."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {k: v for k, v in flat(given) if v is not None and k.split(".")[0] not in IGNORED}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and numbers in nested containers, by dotted name; copied, for callers write over theirs."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        yield name, value.detach().clone() if isinstance(value, Tensor) else value
        return
    for key, child in items:
        yield from flat(child, f"{name}.{key}" if name else str(key))


@dataclass
class Calls:
    """The calls of denoisers, in order."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """The component that was called."""

    def watch(self, name: str, module: nn.Module) -> None:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inputs.append(bound(module, args, kwargs))
            self.names.append(name)

        module.register_forward_pre_hook(keep, with_kwargs=True)

    def of_level(self, k: int) -> int:
        """The first call at the k-th timestep."""
        fed = [float(inputs["timestep"].max()) for inputs in self.inputs]
        return fed.index(list(dict.fromkeys(fed))[k])


@dataclass
class Both:
    """Inputs of the denoiser at one level, by name, and the component that was called."""

    published: dict[str, Any]
    trained: dict[str, Any]
    experts: tuple[str, str]


@contextmanager
def certain_posteriors(size: float | None = None) -> Iterator[None]:
    """Every autoencoder's posterior is a point: its log-variance is -30.

    With a `size`, latents are shifted and scaled so that those first seen have mean 0 in each channel and
    that deviation: what an autoencoder with random weights gives hardly depends on the picture.
    """
    init, affine = DiagonalGaussianDistribution.__init__, list[tuple[Tensor, Tensor]]()

    def certain(self: Any, parameters: Tensor, deterministic: bool = False) -> None:
        mean, logvar = parameters.chunk(2, dim=1)
        if size is not None:
            centre = mean.transpose(0, 1).flatten(1).mean(1).view(1, -1, *[1] * (mean.ndim - 2))
            affine.append((centre, size / (mean - centre).std()))
            mean = (mean - affine[0][0]) * affine[0][1]
        init(self, torch.cat([mean, torch.full_like(logvar, -30)], dim=1), deterministic)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "__init__", certain)
        yield


def write_clips(
    folder: Path,
    frames: int,
    captions: Sequence[str] = CAPTIONS,
    seed: int = 0,
    top: int = 256,
    height: int = SIDES,
) -> Path:
    """Lossless clips of coarse noise, below `top`, whose first frames are the same, and last; or pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(captions, seed):
        random = np.random.default_rng(number)
        ends = np.random.default_rng(7).integers(0, top, (2, 8, 8, 3))
        coarse = [ends[0], *random.integers(0, top, (max(frames - 2, 0), 8, 8, 3)), ends[1]][:frames]
        clip = np.stack(coarse).repeat(height // 8, 1).repeat(SIDES // 8, 2).astype(np.uint8)
        name = f"{number}.png" if frames == 1 else f"{number}.mkv"
        if frames == 1:
            Image.fromarray(np.roll(clip[0], 9 * number, 1)).save(folder / name)
        else:
            _write_lossless(folder / name, clip)
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def _write_lossless(path: Path, clip: Any) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "rgb24"
        stream.options = {"qp": "0"}
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def run_of(
    case: Case,
    model: Path,
    folder: Path,
    cached: bool = True,
    certain: bool = True,
    captions: Sequence[str] | None = None,
    seed: int = 0,
    top: int = 256,
    **keys: Any,
) -> Path:
    """A run on clips in the family's own objective; of a `certain` one nothing but noise is random."""
    family: Any = resolve(case.family)
    shape = family.load(str(model), "meta", torch.float32)
    limits = shape.limits
    frames = 1 if limits.most_frames == 1 else (LATENT_FRAMES - 1) * limits.temporal + 1
    conditions = [{"name": "frame_conditioning", "frames": case.frames}] if case.frames else []
    captions = captions or EVEN_CAPTIONS.get(case.family, CAPTIONS)
    clips = write_clips(folder / "clips", frames, captions, seed, top)
    given = {
        "objective": {"name": family.checkpoint(case.variant).defaults.objective},
        "conditions": conditions,
        "trainable": {"lora": {}},
        "data": {
            "sources": [{"path": str(clips)}],
            "batch_size": 2,
            "buckets": {"frames": [frames], "sizes": [f"{SIDES}x{SIDES}"]},
            "cache": str(folder / "cache") if cached else None,
        },
    }
    described = small_run(model, folder / "cache", **{**given, **keys})
    described["model"]["family"] = case.family
    if case.frames and certain:
        described["model"]["options"] = WITHOUT_CHANCE.get(case.family, {})
    if getattr(shape, "guided", False):  # told to the network, which is distilled
        described["model"].setdefault("options", {})["guidance"] = GUIDANCE
    return write_run(folder / "run.yaml", described)


def record(case: Case, folder: Path) -> list[Both]:
    """The first and the third level of a pipeline's call, and a training step at each of these.

    At the first level training is given the pipeline's latents, as noise.
    """
    model = build_tiny(folder / "model", case.family, case.variant)
    run = config.validate(config.read(run_of(case, model, folder)))
    with certain_posteriors():
        ready = start_training(run, folder)
        job, index, trainer, family = ready.resolved, ready.index, ready.trainer, ready.family
        batch = next(trainer.read())
        captions = [str(caption) for caption in batch[0]["caption"]]
        samples = job.bound.dataset(index)
        pictures = {
            KEYWORDS[medium.name]: _picture(samples.load(medium.name, samples.inputs(0)))
            for medium in family.media
        }
        if case.family in ONE_EACH:
            pictures = {name: [picture] * len(captions) for name, picture in pictures.items()}
        pipe_class = family.image_pipeline_class if case.frames else family.pipeline_type
        pipe = pipe_class.from_pretrained(model)
        published, latents = call(pipe, family, captions, pictures, index.buckets[0])
        trained = Calls()
        for core in family.cores:
            trained.watch(core, family.components[core])
        found = []
        for k in (0, 2):
            at = published.of_level(k)
            fed = float(published.inputs[at]["timestep"].max())
            with fixed(fed, latents if k == 0 else None):
                trainer.train_step(batch)
            told, asked = (
                shown(inputs)
                for inputs in (conditional(published.inputs[at], len(captions)), trained.inputs[-1])
            )
            if k:  # where the latents went since is the scheduler's
                del told["hidden_states"], asked["hidden_states"]
            found.append(Both(told, asked, (published.names[at], trained.names[-1])))
    return found


def call(
    pipe: Any, family: Any, captions: list[str], pictures: dict[str, Any], bucket: Bucket
) -> tuple[Calls, Tensor]:
    """Call a pipeline with a size and nothing else that is not its default; its calls and first latents."""
    pipe.set_progress_bar_config(disable=True)
    calls, drawn = Calls(), list[Tensor]()
    for core in family.cores:
        calls.watch(core, getattr(pipe, core))
    module = inspect.getmodule(type(pipe))
    randn = module.randn_tensor  # type: ignore[union-attr]

    def remember(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(randn(*args, **kwargs))
        return drawn[-1]

    given = {
        "prompt": captions, "negative_prompt": "", "height": bucket.height, "width": bucket.width,
        "num_frames": bucket.frames, "frame_rate": FPS, "guidance_scale": GUIDANCE,
        "num_inference_steps": 4, "output_type": "latent", **pictures,
    }  # fmt: skip
    taken = inspect.signature(pipe.__call__).parameters
    prepared = list[Any]()
    prepare = pipe.prepare_latents

    def remember_prepared(*args: Any, **kwargs: Any) -> Any:
        prepared.append(prepare(*args, **kwargs))
        return prepared[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", remember)
        patch.setattr(pipe, "prepare_latents", remember_prepared)
        pipe(**{name: value for name, value in given.items() if name in taken})
    noise = max(drawn, key=lambda noise: noise.numel())
    first = prepared[0][0] if isinstance(prepared[0], tuple) else prepared[0]
    return calls, first if first.shape == noise.shape else noise  # packed ones are compared as they are fed


def conditional(inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """The captions' half, where a pipeline sends both halves of guidance at once, the empty one first."""
    if len(inputs["hidden_states"]) == rows:
        return inputs
    return {n: v[rows:] if isinstance(v, Tensor) and len(v) == 2 * rows else v for n, v in inputs.items()}


def shown(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with zeros for the text that their mask hides: the denoiser sees nothing of it."""
    mask = inputs.get("encoder_attention_mask")
    if mask is None:
        return inputs
    return {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] * mask.unsqueeze(-1)}


def level_of(family: Denoiser, fed: float, x0: dict[str, Tensor]) -> float:
    """The level u whose timestep is fed, by bisection."""
    if family.alphas_cumprod is not None:
        return (fed + 0.5) / len(family.alphas_cumprod)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at = float(family.path(torch.tensor([middle], dtype=torch.float64), x0)[2])
        low, high = (middle, high) if at < fed else (low, middle)
    return (low + high) / 2


@contextmanager
def fixed(fed: float, latents: Tensor | None) -> Iterator[None]:
    """Training at one timestep; with the noise that makes these latents of its data."""
    start = Diffusion.start

    def at_level(self: Any, family: Denoiser, batch: Any, draw: Draw) -> Noisy:
        noisy = start(self, family, batch, draw)
        level = level_of(family, fed, noisy.x0)
        noisy.u = torch.full_like(noisy.u, level)
        if family.experts:
            noisy.expert = next(n for n, (low, high) in family.experts.items() if low <= level <= high)
        if latents is not None:
            x0 = noisy.x0["x"]
            wanted = latents if latents.shape == x0.shape else latents.transpose(1, 2)
            alpha, sigma, _ = self.path(family, noisy.u, noisy.x0)
            noisy.noise["x"] = (wanted - expand(alpha, x0) * x0) / expand(sigma, x0)
        return noisy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diffusion, "start", at_level)
        yield


def _picture(frame: Tensor) -> Any:
    """(3, 1, H, W) in [-1, 1] as a PIL picture."""
    levels = ((frame[:, 0] + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def usual_lora(family: Family, *further: Rule) -> Claims:
    """Add adapters to the family's usual layers, and to those of further rules; their B is not zero."""
    word = LoraEverywhere(lora=Lora(rank=2, alpha=6))
    rules = spell_rules(word, Freezing(), family.components, family.roles, family.cores, family.lora_targets)
    claims = claim(family.components, [*rules, *further])
    apply_claims(family.components, claims, seed=0)
    for name, parameter in family.components.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    return claims
