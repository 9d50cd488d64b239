"""Autoencoders of any family, through the stage that encodes, and the one definition of PSNR."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from omnitune.errors import UserError
from omnitune.evaluate import psnr
from omnitune.evaluate.data import reconstructed, to_8bit
from omnitune.families.base import Family
from omnitune.families.diffusion.latents import LatentFamily
from omnitune.families.wan import Wan

RECIPE = Path(__file__).parents[2] / "recipes" / "pocket" / "autoencoder.py"


def pixels(frames):
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def test_a_clip_is_decoded_from_the_mean_of_its_posterior(tiny_wan, noise):
    family = Wan.load(str(tiny_wan), "cpu", torch.float32, only=["vae"])
    clip = np.concatenate([noise, noise[:1]])  # five frames
    vae = family.components["vae"]
    with torch.no_grad():
        expected = vae.decode(vae.encode(pixels(clip)).latent_dist.mode()).sample.clamp(-1, 1)
    decoded = reconstructed(family, clip)
    assert decoded.shape == clip.shape
    assert np.array_equal(decoded, to_8bit(expected[0]))
    assert np.array_equal(reconstructed(family, clip), decoded)


def test_an_autoencoder_of_pictures_has_no_time(noise):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2).eval()

    family = SimpleNamespace(components={"vae": vae}, moments_per_frame=False)
    family.posterior = lambda x: LatentFamily.posterior(family, x)
    family.reconstruct = lambda x: LatentFamily.reconstruct(family, x)
    with torch.no_grad():
        expected = vae.decode(vae.encode(pixels(noise[:1])[:, :, 0]).latent_dist.mode()).sample.clamp(-1, 1)
    assert np.array_equal(reconstructed(family, noise[:1]), to_8bit(expected[0][:, None]))


def test_8_bit_pixels_survive_the_way_to_the_model_and_back(noise):
    assert np.array_equal(to_8bit(pixels(noise)[0]), noise)


@pytest.mark.parametrize("frames", [1, 5])
def test_psnr_is_what_the_recipe_of_the_pocket_autoencoder_trains_by(
    tiny_wan: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    spec = spec_from_file_location("pocket_autoencoder", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe: Any = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, recipe)
    spec.loader.exec_module(recipe)
    family = Wan.load(str(tiny_wan), "cpu", torch.float32, only=["vae"])
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8) for _ in range(3)]
    found = float(np.mean([psnr(clip, reconstructed(family, clip)) for clip in clips]))
    stated = recipe.psnr(family.components["vae"], [torch.from_numpy(clip) for clip in clips], frames)
    assert found == pytest.approx(stated, abs=1e-3)


def test_a_family_without_an_autoencoder_says_so():
    class Other(Wan):
        reconstruct = Family.reconstruct

    assert Family.autoencoder is None
    with pytest.raises(UserError, match="family wan has no autoencoder"):
        Other.reconstruct(Other.__new__(Other), torch.zeros(1, 3, 1, 8, 8))
