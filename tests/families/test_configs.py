"""The shipped configurations of published models build, and have the sizes that are published."""

import json
from importlib import import_module
from importlib.resources import files
from typing import Any

import pytest
import torch

CONFIGS = {
    path.name.removesuffix(".json"): json.loads(path.read_text())
    for path in (files("omnitune.families") / "configs").iterdir()
    if path.name.endswith(".json")
}

WAN_PARTS = {"vae": 127e6, "text_encoder": 5.68e9}
NUM_PARAMS = {
    "Wan-AI--Wan2.1-T2V-1.3B-Diffusers": {"transformer": 1.42e9, **WAN_PARTS},
    "Wan-AI--Wan2.1-T2V-14B-Diffusers": {"transformer": 14.3e9, **WAN_PARTS},
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


def test_every_shipped_configuration_has_its_sizes_here() -> None:
    assert CONFIGS.keys() == NUM_PARAMS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_says_where_it_comes_from(name: str) -> None:
    assert CONFIGS[name]["source"]
    assert CONFIGS[name]["verified"] is False


@pytest.mark.parametrize(("name", "component"), [(n, c) for n, parts in NUM_PARAMS.items() for c in parts])
def test_network_has_the_published_size(name: str, component: str) -> None:
    network = build(CONFIGS[name]["components"][component])
    num_params = sum(p.numel() for p in network.parameters())
    assert num_params == pytest.approx(NUM_PARAMS[name][component], rel=0.03)
    assert {p.device.type for p in network.parameters()} == {"meta"}


@pytest.mark.parametrize("name", CONFIGS)
def test_scheduler_is_a_flow_of_the_published_shift(name: str) -> None:
    part = CONFIGS[name]["components"]["scheduler"]
    scheduler = find_class(part).from_config(part["config"])
    scheduler.set_timesteps(2)
    # Halfway at shift 3: 3 x 0.5 / (1 + 2 x 0.5).
    assert scheduler.sigmas[1] == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_tokenizer_is_a_class_of_transformers(name: str) -> None:
    assert callable(find_class(CONFIGS[name]["components"]["tokenizer"]).from_pretrained)
