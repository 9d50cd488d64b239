"""What is special in LTX-Video: statistics among the weights, positions in seconds, levels of tokens."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXImageToVideoPipeline, LTXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from recorded import usual_lora
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnitune.conditions.frames import FrameConditioning
from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.export.weights import export
from omnitune.families import ltx_video
from omnitune.families.base import Noisy
from omnitune.families.diffusion.padding import pad_texts
from omnitune.families.ltx_video import LTXVideo
from omnitune.objectives.diffusion import DynamicShift, FlowMatching
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.random import Draw
from omnitune.sampling import Sampling
from omnitune.testing.tiny import build_tiny

CAPTIONS = ["rocket", "an airplane flies over the sea, seen from below"]
NO_DRAW = Draw(0, [0, 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose autoencoder takes a level, draws noise, and has no neutral constant."""
    folder = build_tiny(
        tmp_path_factory.mktemp("ltx") / "model", "ltx_video", "0.9.1", vae={"scaling_factor": 0.7}
    )
    vae: Any = AutoencoderKLLTXVideo.from_pretrained(folder / "vae")
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if "per_channel_scale" in name:
                value.fill_(0.5)
    vae.save_pretrained(folder / "vae")
    return folder


def load(model: Path, *names: str, dtype: torch.dtype = torch.float32, **options: Any) -> LTXVideo:
    return LTXVideo.load(str(model), "cpu", dtype, only=names, options=LTXVideo.Options(**options))


def pixels(rows: int = 2, frames: int = 9) -> Tensor:
    return torch.rand(rows, 3, frames, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def latents(frames: int = 3) -> Tensor:
    return torch.randn(2, 8, frames, 2, 2, generator=torch.Generator().manual_seed(0))


def prepared(family: LTXVideo, captions: list[str], fps: list[float]) -> dict[str, Any]:
    with torch.no_grad():
        made = family.encode_text({"caption": captions}, NO_DRAW)
    return {**made, "fps": torch.tensor(fps)}


def predicted(family: LTXVideo, noisy: Noisy, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return family.denoise(FlowMatching().noised(family, noisy), batch)["x"]


def at(u: list[float], x0: Tensor) -> Noisy:
    return Noisy({"x": x0}, {"x": x0.flip(-1)}, torch.tensor(u))


def row(batch: dict[str, Any], i: int) -> dict[str, Any]:
    return {name: value[i : i + 1] for name, value in batch.items()}


# Latents


def test_the_pipeline_takes_x0_back_to_the_autoencoders_latents(model: Path) -> None:
    vae: Any = AutoencoderKLLTXVideo.from_pretrained(model / "vae")
    with torch.no_grad():
        posterior = vae.encode(pixels()).latent_dist
    moments = torch.cat([posterior.mean, torch.full_like(posterior.mean, -30)], 1)
    family = load(model)
    x0 = family.draw_latents({"moments": moments}, NO_DRAW)["x0"]["x"]
    back = LTXPipeline._denormalize_latents(x0, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    torch.testing.assert_close(back, posterior.mean, atol=1e-5, rtol=1e-5)
    assert "vae" not in family.components, "cached latents need no autoencoder"
    assert vae.latents_mean.std() > 0.1
    assert vae.latents_std.std() > 0.1


def test_weights_without_statistics_are_refused(model: Path, tmp_path: Path) -> None:
    folder = build_tiny(tmp_path / "model", "ltx_video")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "latents_std"}, file)
    with pytest.raises(UserError, match="lacks latents_std"):
        load(folder).affine()


def test_the_first_latent_frame_of_a_clip_is_that_of_its_first_picture(model: Path) -> None:
    family = load(model, "vae")
    with torch.no_grad():
        clip, picture = (family.posterior(p).mode() for p in (pixels(), pixels()[:, :, :1]))
    torch.testing.assert_close(clip[:, :, :1], picture, atol=1e-5, rtol=1e-5)


# Positions


def test_coordinates_of_rows_whose_rates_differ_give_the_rope_of_each_rate(model: Path) -> None:
    family = load(model, "transformer")
    rope: Any = family.components["transformer"].rope
    x = latents()
    rates = [24.0, 12.0]
    apart = family.positions(rates, x)
    assert set(apart) == {"video_coords"}
    mixed = rope(x, **apart)
    for i in range(2):
        own = family.positions(rates[i : i + 1], x)
        assert own["rope_interpolation_scale"] == (8 / rates[i], 32, 32)
        for ours, theirs in zip(mixed, rope(x[:1], **own), strict=True):
            torch.testing.assert_close(ours[i : i + 1], theirs, atol=1e-6, rtol=0)
    assert (mixed[0][0] - mixed[0][1]).abs().max() > 1e-2


def test_a_batch_of_two_rates_and_captions_equals_two_batches(model: Path) -> None:
    family = load(model, "transformer", "text_encoder")
    batch = prepared(family, CAPTIONS, [24.0, 12.0])
    assert len(batch["prompt_embeds"][0]) != len(batch["prompt_embeds"][1])
    both = predicted(family, at([0.3, 0.8], latents()), batch)
    for i, u in enumerate([0.3, 0.8]):
        alone = predicted(family, at([u], latents()[i : i + 1]), row(batch, i))
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-5)


# Text


def test_what_stands_behind_a_caption_does_not_matter(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load(model, "transformer", "text_encoder")
    batch = prepared(family, CAPTIONS, [24.0, 24.0])
    zeros = predicted(family, at([0.5, 0.5], latents()), batch)

    def with_noise(embeds: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
        text, mask = pad_texts(embeds, length)
        return torch.where(mask[..., None], text, 10 * torch.randn_like(text)), mask

    monkeypatch.setattr(ltx_video, "pad_texts", with_noise)
    assert torch.equal(predicted(family, at([0.5, 0.5], latents()), batch), zeros)
    monkeypatch.setattr(ltx_video, "pad_texts", lambda *a: (with_noise(*a)[0], torch.ones(2, 128).bool()))
    assert not torch.allclose(predicted(family, at([0.5, 0.5], latents()), batch), zeros, atol=1e-3)


def test_t5_reads_the_padding_so_that_the_length_is_part_of_the_cache_key(model: Path) -> None:
    long, short = (load(model, "text_encoder", text_length=n) for n in (128, 32))
    found = [prepared(family, CAPTIONS, [1.0, 1.0])["prompt_embeds"][0] for family in (long, short)]
    assert found[0].shape == found[1].shape
    assert not torch.allclose(*found, atol=1e-3)
    assert [family.text_stages()[0].options["text_length"] for family in (long, short)] == [128, 32]


# Given frames


def test_rows_with_and_without_a_first_frame_train_side_by_side(model: Path) -> None:
    family = load(model, "transformer", "text_encoder")
    family.add_condition(FrameConditioning(probability=0.5))
    batch = prepared(family, CAPTIONS, [24.0, 24.0])
    given, kept = torch.tensor([True, False]), torch.tensor([True, True])
    noisy = family.with_frames(at([0.3, 0.8], latents()), batch, "first", given, kept)
    made = predicted(family, noisy, batch)
    fed = family.token_timesteps(noisy.fed, latents())
    torch.testing.assert_close(fed[0], torch.tensor([0.0] * 4 + [300.0] * 8))
    torch.testing.assert_close(fed[1], torch.full((12,), 800.0))
    assert torch.equal(noisy.x["x"][0, :, 0], noisy.x0["x"][0, :, 0])
    assert noisy.mask is not None
    assert noisy.mask[:, 0, :, 0, 0].tolist() == [[0, 1, 1], [1, 1, 1]]
    text_only = predicted(family, at([0.8], latents()[1:]), row(batch, 1))
    torch.testing.assert_close(made[1:], text_only, atol=1e-5, rtol=1e-5)


def test_a_picture_is_not_its_own_first_frame(model: Path) -> None:
    family = load(model)
    given = torch.tensor([True, True])
    noisy = family.with_frames(at([0.3, 0.8], latents(1)), {}, "first", given, given)
    assert noisy.mask is None
    assert family.token_timesteps(noisy.u, latents(1)).shape == (2,)


def test_last_frames_and_empty_pictures_are_refused(model: Path) -> None:
    family = load(model)
    with pytest.raises(UserError, match="it takes first"):
        family.add_condition(FrameConditioning(frames="last"))
    with pytest.raises(UserError, match="no empty picture"):
        family.add_condition(FrameConditioning(probability=0.5, dropout=0.5))


# Levels


def test_the_default_shift_is_the_schedulers(model: Path) -> None:
    family = load(model)
    config = family.scheduler().config
    x = torch.empty(1, 8, 7, 16, 22)
    tokens = family.num_tokens({"x": x})
    assert tokens == LTXPipeline._pack_latents(x).shape[1]
    mu = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    assert DynamicShift(**family.checkpoint().defaults.shift).value(tokens) == pytest.approx(math.exp(mu))


# Samples


def wanted(num_frames: int = 9, **given: Any) -> Sampling:
    return Sampling("a fox", "", Bucket(num_frames, 64, 64), 2, 3.0, 1, fps=24.0, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_samples_with_and_without_a_first_frame(
    model: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load(model, "vae", dtype=dtype, text_length=32)
    family.add_condition(FrameConditioning(probability=0.5))
    pipes, levels, calls = [], [], list[dict[str, Any]]()
    vae: Any = family.components["vae"]
    decode, generate = vae.decode, family.generate

    def note_level(z: Tensor, level: Tensor, **options: Any) -> Any:
        levels.append(float(level))
        return decode(z, level, **options)

    def note_pipe(pipe: Any, one: Sampling) -> Any:
        pipes.append(type(pipe))
        pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
        )
        return generate(pipe, one)

    monkeypatch.setattr(vae, "decode", note_level)
    monkeypatch.setattr(family, "generate", note_pipe)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    given = wanted(media={"first_frame": picture[None]})
    made = family.sample([wanted(), given, wanted(), given, wanted(1)])
    assert [tuple(video.shape) for video in made] == [(9, 64, 64, 3)] * 4 + [(1, 64, 64, 3)]
    assert pipes[:2] == [LTXPipeline, LTXImageToVideoPipeline]
    assert levels == pytest.approx([0.05] * 5, abs=1e-3)
    assert {fed["rope_interpolation_scale"][0] for fed in calls} == {8 / 24}
    assert {fed["encoder_hidden_states"].shape[1] for fed in calls} == {32}
    assert torch.equal(made[0], made[2]), "the decoder's own noise is the sample's too"
    assert torch.equal(made[1], made[3])


def test_reconstruction_draws_nothing_and_decodes_at_level_0(model: Path) -> None:
    family = load(model, "vae")
    with torch.no_grad():
        once, again = family.reconstruct(pixels()), family.reconstruct(pixels())
        vae: Any = family.components["vae"]
        torch.manual_seed(0)
        published = vae.decode(family.posterior(pixels()).mode(), torch.zeros(2)).sample
    assert once.shape == (2, 3, 9, 64, 64)
    assert torch.equal(once, again)
    assert torch.equal(once, published.clamp(-1, 1))


# Export


def test_both_pipelines_load_the_lora_of_the_usual_layers(model: Path, tmp_path: Path) -> None:
    family = load(model, "transformer", "text_encoder")
    claims = usual_lora(family)
    assert len(claims.adapted) == 2 * 2 * 4  # q, k, v and out of both attentions of each block
    batch = prepared(family, CAPTIONS, [24.0, 24.0])
    live = predicted(family, at([0.3, 0.8], latents()), batch)
    export(family, claims, Mesh(Parallel()), tmp_path / "weights")
    for kind in (LTXPipeline, LTXImageToVideoPipeline):
        pipe = kind.from_pretrained(model)
        pipe.load_lora_weights(tmp_path / "weights")
        family.components["transformer"] = pipe.transformer
        torch.testing.assert_close(
            predicted(family, at([0.3, 0.8], latents()), batch), live, atol=1e-5, rtol=1e-5
        )
        pipe.unload_lora_weights()
        assert not torch.allclose(predicted(family, at([0.3, 0.8], latents()), batch), live, atol=1e-2)
