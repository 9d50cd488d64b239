"""A family with a UNet core, from outside the package: Stable Diffusion 1.5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from stable_diffusion import StableDiffusion
from torch import Tensor, nn

from omnitune import config
from omnitune.commands.init import InitRequest, init
from omnitune.commands.models import models
from omnitune.commands.plan import plan
from omnitune.commands.sample import SampleRequest, sample
from omnitune.commands.train import train
from omnitune.errors import UserError
from omnitune.families.base import Noisy
from omnitune.random import Draw
from omnitune.testing.runs import ASSETS, metrics, small_run, write_run
from omnitune.testing.tiny import build_tiny
from omnitune.trainer import Trainer

FAMILY = "stable_diffusion:StableDiffusion"
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "new-family.md"
CAPTIONS = ["rocket", "a cat plays with a ball of wool"]
LORA = {"lora": {"rank": 4, "alpha": 10}, "lr": 2e-2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("unet") / "model", FAMILY)


def run_on(model: Path, folder: Path, **keys: Any) -> config.Run:
    described = small_run(
        model,
        folder / "cache",
        **{
            "objective": {"name": "epsilon"},
            "trainable": LORA,
            "data": {
                "sources": [{"path": str(ASSETS / "pictures" / "train")}],
                "buckets": {"frames": [1], "sizes": ["32x32"]},
                "batch_size": 4,
                "cache": str(folder / "cache"),
            },
            **keys,
        },
    )
    described["model"]["family"] = FAMILY
    return config.load(write_run(folder / "run.yaml", described))[0]


def trained(run: config.Run, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Path, Any]:
    """Train a run; its folder and the live family."""
    kept: list[Any] = []
    fit = Trainer.fit

    def watched(trainer: Trainer) -> None:
        fit(trainer)
        kept.append(trainer.family)

    monkeypatch.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", watched)
        return folder / train(run).folder, kept[0]


def answer(unet: nn.Module) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        found: Tensor = unet.eval()(
            torch.randn(2, 4, 16, 16), torch.tensor([7, 900]), torch.randn(2, 77, 32), return_dict=False
        )[0]
    return found


def test_the_guide_shows_the_family_that_is_tested() -> None:
    source = (Path(__file__).parent / "stable_diffusion.py").read_text()
    assert len(source.splitlines()) < 120
    assert f"```python\n{source}```" in GUIDE.read_text()


def test_an_adapter_trains_and_its_export_is_what_the_pipeline_loads(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, family = trained(run_on(model, tmp_path), monkeypatch, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(model)
    before = answer(pipe.unet)
    pipe.load_lora_weights(out / "weights")
    torch.testing.assert_close(answer(pipe.unet), answer(family.components["unet"]), atol=1e-5, rtol=1e-5)
    assert (answer(pipe.unet) - before).abs().max() > 1e-3


def test_all_of_the_unet_trains_and_its_export_is_what_diffusers_loads(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(model, tmp_path, trainable="full", optimizer={"name": "adamw", "lr": 1e-2})
    out, family = trained(run, monkeypatch, tmp_path)
    unet = UNet2DConditionModel.from_pretrained(out / "weights" / "unet")
    pipe = StableDiffusionPipeline.from_pretrained(model, unet=unet)
    torch.testing.assert_close(answer(pipe.unet), answer(family.components["unet"]), atol=1e-5, rtol=1e-5)


def test_cached_equals_live_and_a_resumed_run_an_uninterrupted_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, _ = trained(run_on(model, tmp_path / "a", schedule={"steps": 4}), monkeypatch, tmp_path / "a")
    live = run_on(model, tmp_path / "b", schedule={"steps": 2}, checkpoint={"every": 2})
    live = config.load(tmp_path / "b" / "run.yaml", ["data.cache=null"])[0]
    trained(live, monkeypatch, tmp_path / "b")
    longer = config.load(tmp_path / "b" / "run.yaml", ["data.cache=null", "schedule.steps=4"])[0]
    resumed, _ = trained(longer, monkeypatch, tmp_path / "b")
    losses = [[row["loss"] for row in metrics(folder)] for folder in (cached, resumed)]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_training_feeds_the_unet_what_the_pipeline_feeds_it(model: Path) -> None:
    fed: list[dict[str, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fed.append({**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs})

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    pipe(CAPTIONS, height=32, width=32, guidance_scale=1, num_inference_steps=2, output_type="latent")
    told = fed[0]
    family = StableDiffusion.load(str(model), "cpu", torch.float32)
    family.components["unet"].register_forward_pre_hook(keep, with_kwargs=True)
    (text,) = family.text_stages()
    noisy = Noisy({}, {}, torch.ones(2), x={"x": told["sample"]}, fed=told["timestep"].expand(2))
    with torch.no_grad():
        family.denoise(noisy, text.run({"caption": CAPTIONS}, Draw(0, [0, 1])))
    asked = fed[-1]
    for name, value in told.items():
        if isinstance(value, Tensor):
            wanted = value.expand(2) if value.ndim == 0 else value
            torch.testing.assert_close(asked[name], wanted, atol=1e-5, rtol=1e-5)
        elif name != "return_dict":
            assert asked.get(name) is None is value
    # The pipeline decodes latents divided by this.
    pixels = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    latents = family.normalised_mode(pixels)
    torch.testing.assert_close(latents, pipe.vae.encode(pixels[:, :, 0]).latent_dist.mode() * 0.18215)


def test_a_text_encoder_that_trains_is_live_and_exported_beside_the_unet(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = [
        {"params": part, "lora": {"rank": 2}, "lr": 1e-2} for part in ("unet.*.attn?.to_*", "text_encoder.*")
    ]
    run = run_on(model, tmp_path, trainable=rules)
    told = "\n".join(plan(run))
    assert "stage text: live: a rule trains text_encoder" in told
    assert "stage moments: cached" in told
    out, family = trained(run, monkeypatch, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights(out / "weights")
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        live = family.components["text_encoder"](tokens).last_hidden_state
        torch.testing.assert_close(pipe.text_encoder(tokens).last_hidden_state, live, atol=1e-5, rtol=1e-5)


def test_residuals_of_a_branch_go_into_the_unet(model: Path) -> None:
    family = StableDiffusion.load(str(model), "cpu", torch.float32, only=["unet"])
    unet = family.components["unet"]
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    shapes = [(1, 8, 16, 16), (1, 8, 16, 16), (1, 8, 8, 8), (1, 16, 8, 8)]
    residuals = tuple(torch.randn(shape) for shape in shapes), torch.randn(1, 16, 8, 8)
    noisy = Noisy({}, {}, torch.ones(1), x={"x": x}, fed=torch.tensor([5]))
    noisy.extra = {"down_residuals": residuals[0], "mid_residual": residuals[1]}
    with torch.no_grad():
        given = family.denoise(noisy, {"prompt_embeds": text})["x"]
        own = unet(
            x, 5, text, down_block_additional_residuals=residuals[0],
            mid_block_additional_residual=residuals[1], return_dict=False,
        )[0]  # fmt: skip
        assert not torch.equal(given, unet(x, 5, text, return_dict=False)[0])
    assert torch.equal(given, own)


def test_an_objective_that_the_scheduler_contradicts_is_refused(model: Path, tmp_path: Path) -> None:
    run = run_on(model, tmp_path, objective={"name": "v_prediction"})
    with pytest.raises(UserError, match=r"v_prediction, but the scheduler of .*model says epsilon"):
        list(plan(run))


def test_init_models_and_samples_know_the_family(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first.yaml").write_text(init(InitRequest(family=FAMILY)))
    run = config.load(tmp_path / "first.yaml", ["trainable=full"])[0]
    assert run.model.family == FAMILY
    assert any("859.5 M" in line for line in plan(run))  # as published
    assert "height and width multiples of 64, pictures alone" in models([FAMILY])
    out, _ = trained(run_on(model, tmp_path), monkeypatch, tmp_path)
    (made,) = sample(SampleRequest(folder=out, prompts=["rocket"], size="32x32", steps=2)).samples
    assert made.shape == (1, 32, 32, 3)
    away = SampleRequest(out, prompts=["rocket"], negative_prompt="a red cake", size="32x32", steps=2)
    assert not np.array_equal(sample(away).samples[0], made)


class Mine(StableDiffusion):
    variants: ClassVar[Mapping[str, str]] = {**StableDiffusion.variants, "mine": "me/my-model"}


class Unknown(StableDiffusion):
    variants: ClassVar[Mapping[str, str]] = {"mine": "me/my-model"}


def test_init_starts_from_any_variant_with_the_settings_that_are_known() -> None:
    name = f"{__name__}:Mine"
    first, mine = (init(InitRequest(name, variant)) for variant in ("1.5", "mine"))
    assert mine == first.replace(StableDiffusion.variants["1.5"], "me/my-model")
    with pytest.raises(UserError, match=r"write me--my-model\.json with defaults"):
        init(InitRequest(f"{__name__}:Unknown"))
