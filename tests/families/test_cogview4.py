"""CogView4: what is its own, beside the conditions that every family is held to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogView4Pipeline, CogView4Transformer2DModel
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from recorded import Calls, call, usual_lora
from torch import Tensor

from omnitune import config
from omnitune.commands.init import InitRequest, init
from omnitune.data.sizes import Bucket
from omnitune.export.weights import export
from omnitune.families import cogview4
from omnitune.families.base import Noisy
from omnitune.families.cogview4 import CogView4, CogView4Options
from omnitune.families.diffusion.padding import pad_texts
from omnitune.objectives.diffusion import DynamicShift, FlowMatching
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.random import Draw
from omnitune.sampling import Sampling
from omnitune.testing.tiny import build_tiny

SHORT, LONG = "rocket", "an airplane flies over the sea, seen from below, and a cat plays with a ball of wool"
WIDE = Bucket(1, 48, 80)
LATENTS = (16, 6, 10)
"""Of that size."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("cogview4"), "cogview4")


@pytest.fixture
def family(model: Path) -> CogView4:
    return CogView4.load(str(model), "cpu", torch.float32)


def texts(family: CogView4, *captions: str) -> list[Tensor]:
    with torch.no_grad():
        found: list[Tensor] = family.encode_text({"caption": list(captions)}, Draw(0, captions))[
            "prompt_embeds"
        ]
    return found


def noised(family: CogView4, rows: int, u: float = 0.6, noise: Tensor | None = None) -> Noisy:
    chance = torch.Generator().manual_seed(0)
    x0 = torch.randn(rows, *LATENTS, generator=chance)
    noise = torch.randn(rows, *LATENTS, generator=chance) if noise is None else noise
    return FlowMatching().noised(family, Noisy({"x": x0}, {"x": noise}, torch.full((rows,), u)))


def row(noisy: Noisy, i: int) -> Noisy:
    return Noisy({}, {}, noisy.u[i : i + 1], x={"x": noisy.x["x"][i : i + 1]}, fed=noisy.fed[i : i + 1])


def test_the_small_pipeline_is_small(family: CogView4) -> None:
    assert sum(p.numel() for p in family.components.parameters()) < 200_000


def test_the_run_that_init_writes_is_valid_and_has_the_published_shift(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(init(InitRequest("cogview4")))
    run, _ = config.load(tmp_path / "run.yaml")
    assert run.objective == FlowMatching(
        timesteps="uniform", shift=DynamicShift(kind="linear", base=0.25, max=0.75)
    )


# Levels


@pytest.mark.parametrize("sides", [(6, 10), (64, 64), (128, 256)])
def test_the_timestep_of_a_level_is_that_of_the_published_schedule(
    family: CogView4, sides: tuple[int, int]
) -> None:
    steps, tokens = np.linspace(1000, 1, 50).astype(np.int64), sides[0] * sides[1] // 4
    scheduler = family.scheduler()
    scheduler.set_timesteps(timesteps=steps, sigmas=steps / 1000, mu=calculate_shift(tokens))
    levels = scheduler.sigmas[:-1]
    alpha, sigma, fed = family.path(levels, {"x": torch.empty(1, 16, *sides)})
    torch.testing.assert_close(fed, torch.tensor(steps).float(), rtol=1e-5, atol=0)
    assert torch.equal(sigma, levels)
    assert torch.equal(alpha, 1 - levels)


def test_timesteps_between_whole_numbers_are_fed_as_they_are(family: CogView4) -> None:
    _, _, fed = family.path(torch.linspace(0, 1, 4001), {"x": torch.empty(1, *LATENTS)})
    assert len(fed.unique()) == 4001
    assert (fed[0], fed[-1]) == (0, 1000)


def test_with_the_published_defaults_timesteps_are_drawn_evenly(family: CogView4) -> None:
    shift: Any = CogView4.checkpoint().defaults.shift
    objective = FlowMatching(timesteps=CogView4.checkpoint().defaults.timesteps, shift=DynamicShift(**shift))  # type: ignore[arg-type]
    x0 = {"x": torch.empty(2000, 1, 128, 96)}
    draw = Draw(0, range(2000))
    _, _, fed = family.path(objective.levels(family, x0, draw), x0)
    torch.testing.assert_close(fed / 1000, draw.uniform("timestep"), rtol=1e-4, atol=1e-6)


# Text


def test_each_caption_is_padded_alone_to_a_multiple_of_16_as_the_pipeline_pads_a_single_one(
    family: CogView4, model: Path
) -> None:
    pipe = CogView4Pipeline.from_pretrained(model)
    found = texts(family, SHORT, LONG)
    assert [len(e) for e in found] == [16, 32]
    for embeds, caption in zip(found, (SHORT, LONG), strict=True):
        expected = pipe.encode_prompt(caption, do_classifier_free_guidance=False)[0][0]
        torch.testing.assert_close(embeds, expected, rtol=0, atol=0)


def test_text_is_cut_before_it_is_padded(model: Path) -> None:
    short = CogView4.load(str(model), "cpu", torch.float32, options=CogView4Options(text_length=17))
    assert len(texts(short, LONG * 9)[0]) == 32
    assert short.cut_captions([SHORT, LONG * 9]) == [1]
    assert short.call(Sampling(SHORT, "", WIDE, 1, 1.0, 0))["max_sequence_length"] == 17


def test_two_captions_of_unequal_length_are_trained_as_each_alone(family: CogView4) -> None:
    both, noisy = texts(family, SHORT, LONG), noised(family, 2)
    weight: Any = family.components["transformer"].transformer_blocks[0].attn1.to_k.weight  # type: ignore[union-attr, index]
    weight.requires_grad_(True)

    def backward(noisy: Noisy, embeds: list[Tensor]) -> tuple[Tensor, Tensor]:
        made = family.denoise(noisy, {"prompt_embeds": embeds})["x"]
        return made, torch.autograd.grad((made**2).sum(), weight)[0]

    together, gradient = backward(noisy, both)
    alone = [backward(row(noisy, i), both[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat([made for made, _ in alone]), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, sum(one for _, one in alone), rtol=1e-4, atol=1e-5)


def test_what_stands_beyond_a_text_changes_nothing(family: CogView4, monkeypatch: pytest.MonkeyPatch) -> None:
    both, noisy = texts(family, SHORT, LONG), noised(family, 2)
    with torch.no_grad():
        expected = family.denoise(noisy, {"prompt_embeds": both})["x"]
        text, mask = pad_texts(both, max(map(len, both)))
        assert not mask.all()
        louder = torch.where(mask[..., None], text, 9)
        monkeypatch.setattr(cogview4, "pad_texts", lambda embeds, length: (louder.to(embeds[0]), mask))
        found = family.denoise(noisy, {"prompt_embeds": both})["x"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_captions_of_equal_length_go_through_the_published_attention(family: CogView4, model: Path) -> None:
    published = CogView4Transformer2DModel.from_pretrained(model / "transformer")
    core: Any = family.components["transformer"]
    calls = Calls()
    calls.watch("transformer", core)
    with torch.no_grad():
        made = family.denoise(noised(family, 2), {"prompt_embeds": texts(family, SHORT, "two boats")})["x"]
        assert torch.equal(published(**calls.inputs[0], return_dict=False)[0], made)


# Pictures


def test_a_wide_picture_is_fed_as_the_pipeline_feeds_it(family: CogView4, model: Path) -> None:
    published, latents = call(CogView4Pipeline.from_pretrained(model), family, [LONG], {}, WIDE)
    calls = Calls()
    calls.watch("transformer", family.components["transformer"])
    with torch.no_grad():
        noisy = noised(family, 1, 1.0, latents)
        family.denoise(noisy, {"prompt_embeds": texts(family, LONG)})
    told, asked = published.inputs[0], calls.inputs[0]
    assert told.keys() == asked.keys()
    for name in told:
        torch.testing.assert_close(asked[name], told[name], atol=1e-5, rtol=1e-5, msg=name)
    assert asked["original_size"].tolist() == asked["target_size"].tolist() == [[48, 80]]


def test_the_pipeline_decodes_x0_to_the_latents_that_the_vae_gave(family: CogView4, model: Path) -> None:
    z = torch.randn(1, *LATENTS, generator=torch.Generator().manual_seed(3))
    pipe, decoded = CogView4Pipeline.from_pretrained(model), list[Tensor]()
    decode = pipe.vae.decode
    pipe.vae.decode = lambda latents, **options: decoded.append(latents) or decode(latents, **options)
    pipe(
        SHORT, height=48, width=80, num_inference_steps=1, output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: {"latents": family.normalised(z)},
    )  # fmt: skip
    torch.testing.assert_close(decoded[0], z, rtol=0, atol=1e-5)


def test_a_picture_comes_out_of_bfloat16(model: Path) -> None:
    family = CogView4.load(str(model), "cpu", torch.bfloat16)
    (made,) = family.sample([Sampling(SHORT, "", WIDE, 2, 3.0, 0)])
    assert (made.shape, made.dtype) == ((1, 48, 80, 3), torch.uint8)


def test_the_pipeline_loads_the_lora_of_the_usual_layers(
    family: CogView4, model: Path, tmp_path: Path
) -> None:
    claims = usual_lora(family)
    assert len(claims.adapted) == 2 * 4  # blocks, and q, k, v and out of each
    core: Any = family.components["transformer"]
    export(family, claims, Mesh(Parallel()), tmp_path / "weights")
    pipe = CogView4Pipeline.from_pretrained(model)
    pipe.load_lora_weights(tmp_path / "weights")
    calls = Calls()
    calls.watch("transformer", core)
    with torch.no_grad():
        made = family.denoise(noised(family, 1), {"prompt_embeds": texts(family, SHORT)})["x"]
        loaded = pipe.transformer(**calls.inputs[0], return_dict=False)[0]
    torch.testing.assert_close(loaded, made, rtol=0, atol=1e-5)
