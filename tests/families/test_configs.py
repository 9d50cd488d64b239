"""The shipped configurations of published models build, and have the sizes that are published."""

import json
from importlib import import_module
from importlib.resources import files
from typing import Any

import diffusers
import pytest
import torch

from omnitune.families.diffusion.files import ModelFiles

SHIPPED = {
    path.name.removesuffix(".json"): json.loads(path.read_text())
    for path in sorted((files("omnitune.families") / "configs").iterdir(), key=str)
    if path.name.endswith(".json")
}
CONFIGS: dict[str, Any] = {stem: ModelFiles(stem.replace("--", "/")).shipped for stem in SHIPPED}

PIPELINES = {
    "Lightricks--LTX-Video": "LTXPipeline",
    "Lightricks--LTX-Video-0.9.5": "LTXPipeline",
    "THUDM--CogVideoX-2b": "CogVideoXPipeline",
    "THUDM--CogVideoX-5b": "CogVideoXPipeline",
    "THUDM--CogVideoX-5b-I2V": "CogVideoXImageToVideoPipeline",
    "THUDM--CogVideoX1.5-5B": "CogVideoXPipeline",
    "THUDM--CogVideoX1.5-5B-I2V": "CogVideoXImageToVideoPipeline",
    "Wan-AI--Wan2.1-FLF2V-14B-720P-diffusers": "WanImageToVideoPipeline",
    "Wan-AI--Wan2.1-I2V-14B-480P-Diffusers": "WanImageToVideoPipeline",
    "Wan-AI--Wan2.1-I2V-14B-720P-Diffusers": "WanImageToVideoPipeline",
    "Wan-AI--Wan2.1-T2V-1.3B-Diffusers": "WanPipeline",
    "Wan-AI--Wan2.1-T2V-14B-Diffusers": "WanPipeline",
    "Wan-AI--Wan2.2-I2V-A14B-Diffusers": "WanImageToVideoPipeline",
    "Wan-AI--Wan2.2-T2V-A14B-Diffusers": "WanPipeline",
    "Wan-AI--Wan2.2-TI2V-5B-Diffusers": "WanPipeline",
    "a-r-r-o-w--LTX-Video-0.9.1-diffusers": "LTXPipeline",
    "black-forest-labs--FLUX.1-dev": "FluxPipeline",
    "hunyuanvideo-community--HunyuanVideo": "HunyuanVideoPipeline",
    "hunyuanvideo-community--HunyuanVideo-I2V": "HunyuanVideoImageToVideoPipeline",
    "hunyuanvideo-community--HunyuanVideo-I2V-33ch": "HunyuanVideoImageToVideoPipeline",
    "zai-org--CogView4-6B": "CogView4Pipeline",
}

# Published sizes, rounded: bytes of the weights over those of a parameter, or as a model page states them.
NUM_PARAMS = {
    ("Lightricks--LTX-Video", "transformer"): 1.92e9,
    ("Lightricks--LTX-Video", "vae"): 0.419e9,
    ("Lightricks--LTX-Video-0.9.5", "vae"): 1.245e9,
    ("THUDM--CogVideoX-2b", "transformer"): 1.69e9,
    ("THUDM--CogVideoX-2b", "vae"): 0.216e9,
    ("THUDM--CogVideoX-2b", "text_encoder"): 4.76e9,
    ("THUDM--CogVideoX-5b", "transformer"): 5.57e9,
    ("THUDM--CogVideoX-5b", "vae"): 0.216e9,
    ("THUDM--CogVideoX-5b-I2V", "transformer"): 5.57e9,
    ("THUDM--CogVideoX1.5-5B", "transformer"): 5.57e9,
    ("THUDM--CogVideoX1.5-5B", "vae"): 0.216e9,
    ("THUDM--CogVideoX1.5-5B-I2V", "transformer"): 5.57e9,
    ("Wan-AI--Wan2.1-FLF2V-14B-720P-diffusers", "transformer"): 16.4e9,
    ("Wan-AI--Wan2.1-I2V-14B-480P-Diffusers", "transformer"): 16.4e9,
    ("Wan-AI--Wan2.1-I2V-14B-480P-Diffusers", "image_encoder"): 0.632e9,
    ("Wan-AI--Wan2.1-T2V-1.3B-Diffusers", "transformer"): 1.42e9,
    ("Wan-AI--Wan2.1-T2V-1.3B-Diffusers", "vae"): 0.127e9,
    ("Wan-AI--Wan2.1-T2V-1.3B-Diffusers", "text_encoder"): 5.68e9,
    ("Wan-AI--Wan2.1-T2V-14B-Diffusers", "transformer"): 14.3e9,
    ("Wan-AI--Wan2.2-I2V-A14B-Diffusers", "transformer"): 14.3e9,
    ("Wan-AI--Wan2.2-TI2V-5B-Diffusers", "transformer"): 5.0e9,
    ("Wan-AI--Wan2.2-TI2V-5B-Diffusers", "vae"): 0.705e9,
    ("a-r-r-o-w--LTX-Video-0.9.1-diffusers", "vae"): 0.935e9,
    ("black-forest-labs--FLUX.1-dev", "transformer"): 11.9e9,
    ("black-forest-labs--FLUX.1-dev", "vae"): 0.0838e9,
    ("hunyuanvideo-community--HunyuanVideo", "transformer"): 12.8e9,
    ("hunyuanvideo-community--HunyuanVideo", "vae"): 0.246e9,
    ("hunyuanvideo-community--HunyuanVideo", "text_encoder"): 7.5e9,
    ("hunyuanvideo-community--HunyuanVideo", "text_encoder_2"): 0.123e9,
    ("hunyuanvideo-community--HunyuanVideo-I2V", "transformer"): 12.8e9,
    ("hunyuanvideo-community--HunyuanVideo-I2V", "text_encoder"): 8.36e9,
    ("hunyuanvideo-community--HunyuanVideo-I2V-33ch", "transformer"): 12.8e9,
    ("zai-org--CogView4-6B", "transformer"): 6.37e9,
    ("zai-org--CogView4-6B", "vae"): 0.406e9,
    ("zai-org--CogView4-6B", "text_encoder"): 8.8e9,
}

# Where half of the noise lands: s x 0.5 / (1 + (s - 1) x 0.5) at shift s.
SHIFTS = {
    "Lightricks--LTX-Video-0.9.5": 1.0,
    "Wan-AI--Wan2.1-FLF2V-14B-720P-diffusers": 16.0,
    "Wan-AI--Wan2.1-T2V-1.3B-Diffusers": 3.0,
    "Wan-AI--Wan2.2-TI2V-5B-Diffusers": 5.0,
    "hunyuanvideo-community--HunyuanVideo": 7.0,
}


def find_class(part: dict[str, Any]) -> Any:
    library, name = part["class"]
    return getattr(import_module(library), name)


def build(part: dict[str, Any]) -> Any:
    cls = find_class(part)
    with torch.device("meta"):
        if part["class"][0] == "transformers":
            return cls(cls.config_class.from_dict(part["config"]))
        return cls.from_config(part["config"])


def own_parts() -> list[tuple[str, str]]:
    """Networks that stand in a file themselves, so that each is built once."""
    networks = ("transformer", "vae", "encoder")
    return [
        (stem, name)
        for stem, config in SHIPPED.items()
        for name, part in config["components"].items()
        if "class" in part and any(word in name for word in networks)
    ]


@pytest.mark.parametrize(("stem", "name"), own_parts())
def test_network_builds_and_has_the_published_size(stem: str, name: str) -> None:
    network = build(SHIPPED[stem]["components"][name])
    num_params = sum(p.numel() for p in network.parameters())
    assert num_params == pytest.approx(NUM_PARAMS[stem, name], rel=0.03)
    assert {p.device.type for p in network.parameters()} == {"meta"}


@pytest.mark.parametrize("stem", SHIPPED)
def test_every_part_says_what_it_is(stem: str) -> None:
    for part in CONFIGS[stem]["components"].values():
        assert set(part) - {"small", "same_as"} == {"class", "config"}
        assert callable(find_class(part))
    assert CONFIGS[stem]["source"]
    assert CONFIGS[stem]["verified"] is False


@pytest.mark.parametrize("stem", SHIPPED)
def test_pipeline_has_all_its_parts(stem: str) -> None:
    cls = getattr(diffusers, PIPELINES[stem])
    parts, options = cls._get_signature_keys(cls)
    found = set(CONFIGS[stem]["components"])
    assert set(parts) - set(cls._optional_components) <= found <= set(parts)
    assert set(CONFIGS[stem].get("pipeline", {})) <= set(options)


@pytest.mark.parametrize("stem", SHIFTS)
def test_scheduler_has_the_published_shift(stem: str) -> None:
    part, shift = CONFIGS[stem]["components"]["scheduler"], SHIFTS[stem]
    scheduler = find_class(part).from_config(part["config"])
    scheduler.set_timesteps(
        **({"num_inference_steps": 2} if "flow_shift" in part["config"] else {"sigmas": [1.0, 0.5]})
    )
    assert float(scheduler.sigmas[1]) == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5), abs=1e-3)


@pytest.mark.parametrize("stem", ["THUDM--CogVideoX-2b", "THUDM--CogVideoX-5b"])
def test_cogvideox_ends_in_noise_alone(stem: str) -> None:
    part = CONFIGS[stem]["components"]["scheduler"]
    scheduler = find_class(part).from_config(part["config"])
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-9)


def test_hunyuanvideo_takes_its_picture_by_token_or_by_channel() -> None:
    def transformer(name: str) -> dict[str, Any]:
        return CONFIGS[f"hunyuanvideo-community--{name}"]["components"]["transformer"]["config"]

    replaced, concatenated = transformer("HunyuanVideo-I2V"), transformer("HunyuanVideo-I2V-33ch")
    assert (replaced["image_condition_type"], replaced["in_channels"]) == ("token_replace", 16)
    assert (concatenated["image_condition_type"], concatenated["in_channels"]) == ("latent_concat", 33)
