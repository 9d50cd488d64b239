"""What Wan's denoiser is fed in training is what the published pipeline feeds it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from omnitune import config
from omnitune.data import media
from omnitune.objectives.diffusion import FlowMatching
from omnitune.random import Draw
from omnitune.testing.runs import small_run, write_run
from omnitune.testing.tiny import build_tiny
from omnitune.testing.training import start_training

pytest_plugins = ["core_fixtures"]

SIZE = {"height": 32, "width": 32, "num_frames": 9}
CAPTIONS = {"a.mp4": "rocket", "b.mp4": "an airplane flies over the sea,  seen from below &amp; a cat"}
NOT_INPUTS = {"attention_kwargs", "return_dict"}
"""Keywords that carry no tensor: the first is None in both, the second the form of the answer."""


@dataclass
class Recorder:
    """Remembers the first call of a module."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def watch(self, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.kwargs:
            self.args, self.kwargs = args, kwargs

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.kwargs.items() if isinstance(value, Tensor)}


@dataclass
class Step:
    """One training step as the trainer takes it, and everything around its denoiser."""

    fed: Tensor
    """The timestep of the pipeline whose level was trained."""
    published: Recorder
    trained: Recorder
    pixels: Tensor
    """(B, 3, T, H, W) in [-1, 1], what the data give."""
    draws: dict[str, Tensor]

    @property
    def u(self) -> float:
        return float(self.fed[0]) / 1000


def write_clips(folder: Path) -> Path:
    """Two clips of moving gradients, and captions whose lengths in tokens differ."""
    ramp = np.linspace(0, 255, 32)
    for number, name in enumerate(CAPTIONS):
        frames = [np.roll(np.add.outer(ramp, ramp[::-1]) / 2, 3 * t + 11 * number, number) for t in range(9)]
        folder.mkdir(parents=True, exist_ok=True)
        media.write_video(folder / name, np.repeat(np.stack(frames)[..., None], 3, -1).astype(np.uint8), 8)
        (folder / name).with_suffix(".txt").write_text(CAPTIONS[name])
    return folder


def without_variance(model: Path) -> Path:
    """Make the VAE's posterior a point: its log-variance is -30 everywhere."""
    vae: Any = AutoencoderKLWan.from_pretrained(model / "vae")
    with torch.no_grad():
        vae.quant_conv.weight[16:] = 0
        vae.quant_conv.bias[16:] = -30
    vae.save_pretrained(model / "vae")
    return model


def take_step(model: Path, folder: Path, scheduler: Any = None) -> Step:
    """Record the pipeline's first denoiser call, then a training step on the same captions and level."""
    file = write_run(
        folder / "run.yaml",
        small_run(
            model, folder / "cache",
            data={
                "sources": [{"path": str(write_clips(folder / "clips"))}], "batch_size": 2,
                "buckets": {"frames": [9], "sizes": ["32x32"]}, "cache": str(folder / "cache"),
            },
        ),
    )  # fmt: skip
    run = config.validate(config.read(file))
    ready = start_training(run, folder)
    job, index, trainer, family = ready.resolved, ready.index, ready.trainer, ready.family
    rows = trainer.batches.order.batch(0)
    assert not any(stage.name in ("moments", "text") for stage in trainer.stages), (
        "cached inputs are what is tested"
    )

    published, trained, draws = Recorder(), Recorder(), dict[str, Tensor]()
    pipe = load_pipeline(model, scheduler)
    published.watch(pipe.transformer)
    captions = [index.items[row.index].caption for row in rows]
    pipe(captions, **SIZE, guidance_scale=1, num_inference_steps=4, output_type="latent")
    fed = published.tensors["timestep"]

    trained.watch(family.components["transformer"])
    normal = Draw.normal

    def remember(draw: Draw, purpose: str, shape: Any = ()) -> Tensor:
        draws[purpose] = normal(draw, purpose, shape)
        return draws[purpose]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draw, "normal", remember)
        patch.setattr(FlowMatching, "levels", lambda self, family, x0, draw: fed.float() / 1000)
        trainer.train_step(next(trainer.read()))
    samples = job.bound.dataset(index)
    pixels = torch.stack([samples.load("pixels", samples.inputs(row.index)) for row in rows])
    return Step(fed, published, trained, pixels, draws)


def load_pipeline(model: Path, scheduler: Any = None) -> Any:
    pipe = WanPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = scheduler
    return pipe


@pytest.fixture(scope="module")
def step(tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Step:
    return take_step(tiny_wan, tmp_path_factory.mktemp("step"))


def x0_by_pipeline(step: Step, model: Path, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """(z, x0): latents of the step's pixels by the pipeline's own VAE, and normalised by its statistics."""
    vae: Any = load_pipeline(model).vae
    with torch.no_grad():
        posterior = vae.encode(step.pixels).latent_dist
    z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
    mean, std = (
        torch.tensor(getattr(vae.config, n)).view(1, -1, 1, 1, 1) for n in ("latents_mean", "latents_std")
    )
    return z, (z - mean) / std


def x0_by_training(step: Step) -> Tensor:
    """Undo the noise that the step mixed in."""
    return (step.trained.tensors["hidden_states"] - step.u * step.draws["noise"]) / (1 - step.u)


def test_training_passes_the_denoiser_the_keywords_that_the_pipeline_passes(step: Step) -> None:
    assert step.published.args == step.trained.args == ()
    told, asked = ({k for k, v in r.kwargs.items() if v is not None} for r in (step.published, step.trained))
    assert told - NOT_INPUTS == asked - NOT_INPUTS
    assert step.published.kwargs["attention_kwargs"] is None
    assert step.trained.tensors.keys() == step.published.tensors.keys()


def test_caption_embeddings_equal_those_of_the_pipeline_with_zeros_up_to_512(step: Step) -> None:
    ours, theirs = (r.tensors["encoder_hidden_states"] for r in (step.trained, step.published))
    assert ours.shape == theirs.shape == (2, 512, 32)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    lengths = [int(row.abs().sum(1).nonzero().max()) + 1 for row in theirs]
    assert lengths[0] != lengths[1]
    assert all(bool((row[n:] == 0).all()) for row, n in zip(ours, lengths, strict=True))


def test_the_timestep_equals_that_of_the_pipeline_at_the_same_level(step: Step) -> None:
    ours = step.trained.tensors["timestep"]
    assert ours.shape == step.fed.shape == (2,)
    # UniPC cuts its timesteps to whole numbers, which the time embedding turns into fp32 at once.
    assert step.fed.dtype == torch.int64
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, step.fed.float(), rtol=1e-6, atol=0)


def at_a_quarter() -> Any:
    """A scheduler of one step at a level that leaves most of the data, so that errors of x0 show."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[0.25])
    scheduler.set_timesteps = lambda *_, **__: None  # type: ignore[method-assign]  # the pipeline keeps that level
    return scheduler


@pytest.fixture(scope="module")
def quarter(tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Step:
    return take_step(tiny_wan, tmp_path_factory.mktemp("quarter"), at_a_quarter())


def test_the_timestep_equals_that_of_a_scheduler_that_keeps_fractions(quarter: Step) -> None:
    assert quarter.u == 0.25
    assert quarter.trained.tensors["timestep"].dtype == quarter.fed.dtype == torch.float32
    torch.testing.assert_close(quarter.trained.tensors["timestep"], quarter.fed, rtol=1e-6, atol=0)


def test_the_noised_latents_mix_the_normalised_posterior_sample_and_noise(
    quarter: Step, tiny_wan: Path
) -> None:
    _, x0 = x0_by_pipeline(quarter, tiny_wan, quarter.draws["posterior"])
    ours, theirs = (r.tensors["hidden_states"] for r in (quarter.trained, quarter.published))
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, 0.75 * x0 + 0.25 * quarter.draws["noise"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def pointed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Step, Path]:
    """A step of a model whose posterior has no spread."""
    folder = tmp_path_factory.mktemp("pointed")
    model = without_variance(build_tiny(folder / "model"))
    return take_step(model, folder, at_a_quarter()), model


def test_without_posterior_variance_x0_is_the_normalised_mean(pointed: tuple[Step, Path]) -> None:
    step, model = pointed
    _, x0 = x0_by_pipeline(step, model, None)
    torch.testing.assert_close(x0_by_training(step), x0, rtol=0, atol=1e-5)


def test_the_pipeline_decodes_x0_to_the_latents_that_the_vae_gave(pointed: tuple[Step, Path]) -> None:
    step, model = pointed
    z, _ = x0_by_pipeline(step, model, None)
    x0 = x0_by_training(step)
    pipe, decoded = load_pipeline(model), []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda latents, **options: decoded.append(latents) or decode(latents, **options)
    pipe(
        list(CAPTIONS.values()), **SIZE, guidance_scale=1, num_inference_steps=1, output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: {"latents": x0},
    )  # fmt: skip
    torch.testing.assert_close(decoded[0], z, rtol=0, atol=1e-5)


def test_captions_that_the_text_stage_cuts_are_noted_by_the_tokenizer_alone(workplace) -> None:
    def notes(length: int) -> list[str]:
        job = workplace.job(f"model.options.text_length={length}")
        assert {p.device.type for p in job.shape.components.parameters()} == {"meta"}
        return job.index().caption_notes(job.shape.cut_captions)

    workplace.add("long.png", "a fox runs through snow " * 9)
    job = workplace.job()
    longest = len(job.shape.tokenizer(("a fox runs through snow " * 9).strip()).input_ids)
    assert notes(longest) == []
    assert notes(longest - 1) == [
        "1 caption is longer than model.options.text_length and cut there: clips/long.png"
    ]
    assert notes(1)[0].startswith("6 captions are longer")
