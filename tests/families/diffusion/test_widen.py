"""Networks with further channels: the same at first, saved and loaded as any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from omnitune.errors import UserError
from omnitune.families.base import Noisy
from omnitune.families.cogview4 import CogView4
from omnitune.families.wan import Wan
from omnitune.testing.tiny import build_tiny

FURTHER = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("model") / "wan")


def predicted(family: Wan, further: Tensor | None = None) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 3, 4, 4, generator=draw)
    text = [torch.randn(n, 32, generator=draw) for n in (3, 6)]
    noisy = Noisy({}, {}, torch.ones(2), x={"x": x}, fed=torch.tensor([100.0, 900.0]))
    if further is not None:
        noisy.extra["channels"] = further.expand(2, FURTHER, 3, 4, 4)
    with torch.no_grad():
        return family.denoise(noisy, {"prompt_embeds": text})


def load(model: Path, device: str = "cpu") -> Wan:
    return Wan.load(str(model), device, torch.float32, only=["transformer"])


@pytest.mark.parametrize("outputs", [0, 3])
def test_a_widened_model_gives_what_it_gave_whatever_the_new_channels_hold(model: Path, outputs: int) -> None:
    before, family = predicted(load(model))["x"], load(model)
    family.widen(FURTHER, outputs)
    for further in (torch.zeros(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 7.0)):
        made = predicted(family, further)
        torch.testing.assert_close(made["x"], before, atol=1e-6, rtol=1e-6)
        if outputs:
            assert torch.equal(made["further"], torch.zeros(2, outputs, 3, 4, 4))


def test_a_widened_network_is_saved_and_loaded_by_diffusers_and_not_widened_again(
    model: Path, tmp_path: Path
) -> None:
    family = load(model)
    family.widen(FURTHER)
    network = family.components["transformer"]
    torch.nn.init.normal_(network.patch_embedding.weight[:, 16:])
    copy = shutil.copytree(model, tmp_path / "copy")
    network.save_pretrained(copy / "transformer")
    assert json.loads((copy / "transformer" / "config.json").read_text())["in_channels"] == 16 + FURTHER
    loaded = WanTransformer3DModel.from_pretrained(copy / "transformer")
    assert torch.equal(loaded.patch_embedding.weight, network.patch_embedding.weight)
    wide = load(copy)
    wide.widen(FURTHER)
    assert torch.equal(wide.components["transformer"].patch_embedding.weight, network.patch_embedding.weight)
    further = torch.full((1, 1, 1, 1, 1), 0.5)
    assert torch.equal(predicted(wide, further)["x"], predicted(family, further)["x"])


def test_channels_of_several_askers_add_up_and_outlive_dropping(model: Path) -> None:
    family = load(model)
    family.widen(2)
    family.drop(["transformer"])
    family.widen(FURTHER - 2)
    family.fetch(["transformer"])
    assert family.components["transformer"].patch_embedding.in_channels == 16 + FURTHER
    torch.testing.assert_close(
        predicted(family, torch.ones(1, 1, 1, 1, 1))["x"], predicted(load(model))["x"], atol=1e-6, rtol=1e-6
    )


def test_the_meta_device_knows_the_new_sizes_and_files_are_held_against_the_old(model: Path) -> None:
    family = load(model, "meta")
    family.widen(FURTHER, 1)
    shapes = {n: tuple(p.shape) for n, p in family.components["transformer"].named_parameters()}
    assert shapes["patch_embedding.weight"][1] == 16 + FURTHER
    assert shapes["proj_out.weight"][0] == 4 * 17
    assert family.check_weights(["transformer"]) == []


def test_a_family_that_cannot_be_widened_says_so() -> None:
    family = CogView4.load("zai-org/CogView4-6B", "meta", torch.float32, only=[])
    with pytest.raises(UserError, match="family cogview4 takes no further channels"):
        family.widen(1)
