"""FLUX.1: what is its own, beside the conditions that every family is held to."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from recorded import Calls, call, usual_lora
from torch import Tensor

from omnitune import config
from omnitune.batch import Batch
from omnitune.commands.init import InitRequest, init
from omnitune.config import validate_options
from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.export.weights import export
from omnitune.families.base import Noisy
from omnitune.families.flux import Flux, FluxOptions
from omnitune.objectives.diffusion import DynamicShift, FlowMatching
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.random import Draw
from omnitune.sampling import Sampling
from omnitune.testing.tiny import build_tiny
from omnitune.trainable.rules import Lora, Rule

SHORT, LONG = "rocket", "an airplane flies over the sea, seen from below, and a cat plays with a ball of wool"
WIDE = Bucket(1, 48, 80)
LATENTS = (16, 6, 10)
"""Of that size."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("flux"), "flux")


@pytest.fixture
def family(model: Path) -> Flux:
    return Flux.load(str(model), "cpu", torch.float32)


def texts(family: Flux, *captions: str) -> Batch:
    batch, draw = {"caption": list(captions)}, Draw(0, captions)
    with torch.no_grad():
        return {**family.encode_text(batch, draw), **family.pooled_stage("text_encoder").run(batch, draw)}


def noised(family: Flux, rows: int, u: float = 0.6, noise: Tensor | None = None) -> Noisy:
    chance = torch.Generator().manual_seed(0)
    x0 = torch.randn(rows, *LATENTS, generator=chance)
    noise = torch.randn(rows, *LATENTS, generator=chance) if noise is None else noise
    return FlowMatching().noised(family, Noisy({"x": x0}, {"x": noise}, torch.full((rows,), u)))


def row(noisy: Noisy, i: int) -> Noisy:
    return Noisy({}, {}, noisy.u[i : i + 1], x={"x": noisy.x["x"][i : i + 1]}, fed=noisy.fed[i : i + 1])


def inputs(family: Flux, noisy: Noisy, batch: Batch) -> dict[str, Any]:
    calls = Calls()
    calls.watch("transformer", family.components["transformer"])
    with torch.no_grad():
        family.denoise(noisy, batch)
    return calls.inputs[0]


def test_the_small_pipeline_is_small(family: Flux) -> None:
    assert sum(p.numel() for p in family.components.parameters()) < 200_000


def test_the_run_that_init_writes_is_valid_and_has_the_published_shift(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(init(InitRequest("flux")))
    run, _ = config.load(tmp_path / "run.yaml")
    assert run.objective == FlowMatching(timesteps="logit_normal", shift=DynamicShift(base=0.5, max=1.15))


# Levels


def test_the_network_is_fed_levels_up_to_1_whole(family: Flux) -> None:
    levels = torch.linspace(0, 1, 4001)
    alpha, sigma, fed = family.path(levels, {"x": torch.empty(1, *LATENTS)})
    assert torch.equal(fed, levels)
    assert torch.equal(sigma, levels)
    assert torch.equal(alpha, 1 - levels)


@pytest.mark.parametrize("sides", [(6, 10), (64, 64), (128, 128)])
def test_the_default_shift_is_that_of_the_published_schedule(family: Flux, sides: tuple[int, int]) -> None:
    stated: Any = Flux.checkpoint().defaults.shift
    scheduler = family.scheduler()
    tokens = family.num_tokens({"x": torch.empty(1, 16, *sides)})
    assert tokens == sides[0] * sides[1] // 4
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config[key] for key in keys))
    scheduler.set_timesteps(sigmas=[0.5], mu=mu)
    shift = DynamicShift(**stated).value(tokens)
    assert shift == pytest.approx(math.exp(mu))
    assert float(scheduler.sigmas[0]) == pytest.approx(shift / (1 + shift))


# Guidance


def test_the_default_guidance_is_that_of_the_pipeline() -> None:
    published = inspect.signature(FluxPipeline.__call__).parameters["guidance_scale"].default
    assert FluxOptions().guidance == Flux.checkpoint().defaults.guidance == published


def test_guidance_is_told_to_the_network_as_it_is(family: Flux) -> None:
    told = inputs(family, noised(family, 2), texts(family, SHORT, LONG))["guidance"]
    assert (told.tolist(), told.dtype) == ([3.5, 3.5], torch.float32)


def test_a_model_without_guidance_is_told_none(tmp_path: Path) -> None:
    model = str(build_tiny(tmp_path / "model", "flux", transformer={"guidance_embeds": False}))
    family = Flux.load(model, "cpu", torch.float32)
    assert "guidance" not in inputs(family, noised(family, 1), texts(family, SHORT))
    with pytest.raises(UserError, match=r"model\.options\.guidance: 2 has no effect"):
        Flux.load(model, "meta", torch.float32, options=FluxOptions(guidance=2.0))


# Text


def test_texts_are_stored_with_their_padding_as_the_pipeline_encodes_them(family: Flux, model: Path) -> None:
    with torch.no_grad():
        embeds, pooled, _ = FluxPipeline.from_pretrained(model).encode_prompt([SHORT, LONG])
    found = texts(family, SHORT, LONG)
    assert found["prompt_embeds"].shape == (2, 512, 32)
    torch.testing.assert_close(found["prompt_embeds"], embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["pooled_embeds"], pooled, rtol=0, atol=1e-6)
    assert not any(stage.ragged for stage in family.text_stages())


def test_two_captions_are_trained_as_each_alone(family: Flux) -> None:
    noisy = noised(family, 2)
    with torch.no_grad():
        together = family.denoise(noisy, texts(family, SHORT, LONG))["x"]
        alone = [
            family.denoise(row(noisy, i), texts(family, caption))["x"]
            for i, caption in enumerate((SHORT, LONG))
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_the_text_length_is_that_of_t5_and_samples_have_it_too(model: Path) -> None:
    t5, clip = (
        Flux.load(str(model), "meta", torch.float32).processor(n) for n in ("tokenizer_2", "tokenizer")
    )
    length = len(t5(LONG).input_ids)
    assert length > len(clip(LONG).input_ids) + 1  # which would cut nothing
    family = Flux.load(str(model), "cpu", torch.float32, options=FluxOptions(text_length=length))
    assert texts(family, LONG)["prompt_embeds"].shape[1] == length
    assert family.cut_captions([SHORT, LONG, f"{LONG} rocket"]) == [2]
    assert family.call(Sampling(SHORT, "", WIDE, 1, 1.0, 0))["max_sequence_length"] == length
    with pytest.raises(UserError, match="text_length must be from 1 to 512, not 513"):
        validate_options(FluxOptions, {"text_length": 513}, "model.options")


# Pictures


def test_a_wide_picture_is_fed_as_the_pipeline_feeds_it(model: Path) -> None:
    family = Flux.load(str(model), "cpu", torch.float32, options=FluxOptions(guidance=3.0))
    published, latents = call(FluxPipeline.from_pretrained(model), family, [SHORT, LONG], {}, WIDE)
    asked = inputs(family, noised(family, 2, 1.0, latents), texts(family, SHORT, LONG))
    told = published.inputs[0]
    assert told.keys() == asked.keys()
    for name in told:
        torch.testing.assert_close(asked[name], told[name], atol=1e-5, rtol=1e-5, msg=name)
    assert (asked["txt_ids"].shape, asked["img_ids"].shape) == ((512, 3), (15, 3))
    assert asked["img_ids"].amax(0).tolist() == [0, 2, 4]


def test_the_prediction_comes_back_in_the_layout_of_x0(family: Flux, monkeypatch: pytest.MonkeyPatch) -> None:
    core, noisy = family.components["transformer"], noised(family, 2)
    monkeypatch.setattr(core, "forward", lambda hidden_states, **others: (hidden_states,))
    assert torch.equal(family.denoise(noisy, texts(family, SHORT, LONG))["x"], noisy.x["x"])


def test_the_pipeline_decodes_x0_to_the_latents_that_the_vae_gave(family: Flux, model: Path) -> None:
    z = torch.randn(1, *LATENTS, generator=torch.Generator().manual_seed(3))
    x0 = FluxPipeline._pack_latents(family.normalised(z), 1, *LATENTS)
    pipe, decoded = FluxPipeline.from_pretrained(model), list[Tensor]()
    decode = pipe.vae.decode
    pipe.vae.decode = lambda latents, **options: decoded.append(latents) or decode(latents, **options)
    pipe(
        SHORT, height=48, width=80, num_inference_steps=1, output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: {"latents": x0},
    )  # fmt: skip
    torch.testing.assert_close(decoded[0], z, rtol=0, atol=1e-5)


def test_a_picture_comes_out_of_bfloat16_though_the_autoencoder_computes_in_float32(model: Path) -> None:
    family = Flux.load(str(model), "cpu", torch.bfloat16)
    assert family.components["vae"].dtype == torch.float32
    (made,) = family.sample([Sampling(SHORT, "", WIDE, 2, 3.0, 0)])
    assert (made.shape, made.dtype) == ((1, 48, 80, 3), torch.uint8)


def test_the_pipeline_loads_the_lora_of_the_usual_layers_and_of_clip(
    family: Flux, model: Path, tmp_path: Path
) -> None:
    claims = usual_lora(family, Rule(params="text_encoder.*_proj", lora=Lora(rank=2, alpha=6)))
    # 8 in attention and 4 in the two feed-forward nets of a double block; q, k, v of a single one; CLIP's.
    assert len(claims.adapted) == 2 * 12 + 2 * 3 + 2 * 4
    export(family, claims, Mesh(Parallel()), tmp_path / "weights")
    pipe = FluxPipeline.from_pretrained(model)
    before = pipe.encode_prompt(LONG)[1]
    pipe.load_lora_weights(tmp_path / "weights")
    batch, noisy = texts(family, LONG), noised(family, 1)
    fed = inputs(family, noisy, batch)
    with torch.no_grad():
        loaded = pipe.transformer(**fed, return_dict=False)[0]
        made = FluxPipeline._pack_latents(family.denoise(noisy, batch)["x"], 1, *LATENTS)
        pooled = pipe.encode_prompt(LONG)[1]
    torch.testing.assert_close(loaded, made, rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled, batch["pooled_embeds"], rtol=0, atol=1e-5)
    assert (pooled - before).abs().max() > 1e-3
