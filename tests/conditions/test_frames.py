"""Given frames through the door of conditions: what samples bring, and who generates."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LTXImageToVideoPipeline, LTXPipeline

from omnitune.commands.init import InitRequest, init
from omnitune.conditions.frames import FrameConditioning
from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.families import resolve
from omnitune.families.base import Denoiser
from omnitune.sampling import Sampling, Validation


def on_meta(family: str, variant: str) -> Denoiser:
    cls = resolve(family)
    found = cls.load(cls.variants[variant], "meta", torch.float32, only=[])
    assert isinstance(found, Denoiser)
    return found


@pytest.mark.parametrize(
    ("family", "variant", "frames", "names", "need"),
    [
        ("wan", "i2v", "first", ["first_frame"], "required"),
        ("wan", "flf2v", "both", ["first_frame", "last_frame"], "required"),
        ("wan", "ti2v-5b", "first", ["first_frame"], "optional"),
        ("ltx_video", "0.9.0", "first", ["first_frame"], "optional"),
    ],
)
def test_samples_bring_the_frames_that_the_checkpoint_wants(
    family: str, variant: str, frames: str, names: list[str], need: str
) -> None:
    found = on_meta(family, variant)
    assert bool(found.missing_condition()) == (need == "required")
    found.add_condition(FrameConditioning(frames=frames))  # type: ignore[arg-type]
    assert found.missing_condition() is None
    assert [(medium.name, medium.sampling) for medium in found.media] == [(name, need) for name in names]


def test_a_sample_without_frames_is_of_the_pipeline_that_takes_none() -> None:
    family = on_meta("ltx_video", "0.9.0")
    family.add_condition(FrameConditioning())
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    without = Sampling("a fox", "", Bucket(9, 32, 32), 1, 1.0, 0)
    given = Sampling("a fox", "", Bucket(9, 32, 32), 1, 1.0, 0, media={"first_frame": picture})
    assert family.conditioned(without) == without
    asked = family.conditioned(given)
    assert (asked.pipeline, list(asked.keywords)) == (LTXImageToVideoPipeline, ["image"])
    assert family.pipeline_type is LTXPipeline  # type: ignore[attr-defined]


def test_published_settings_state_their_conditions_and_init_writes_them() -> None:
    stated = resolve("wan").checkpoint("flf2v").conditions
    assert json.dumps(stated) == '[{"name": "frame_conditioning", "frames": "both"}]'
    written = init(InitRequest("wan", "flf2v"))
    assert "  - {name: frame_conditioning, frames: both}\n" in written
    assert "  images: [images.png]" in written
    assert "  last_images: [last_images.png]" in written
    assert "images" not in init(InitRequest("wan", "t2v"))


def test_an_answering_model_is_given_no_frames() -> None:
    family = resolve("vlm")
    with pytest.raises(UserError, match=r"frames: 'first' is not for .*, it is given no frames"):
        family.load(family.variants["qwen3_vl"], "meta", torch.float32, only=[]).add_condition(
            FrameConditioning()
        )


def test_a_medium_with_an_option_of_its_own_is_stated_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"media.first_frame is stated as images; move it there"):
        Validation(prompts=["a"], media={"first_frame": [tmp_path / "a.png"]})
    with pytest.raises(ValueError, match=r"media.control: 2 for 1 prompts; give one for each"):
        Validation(prompts=["a"], media={"control": [tmp_path / "a.png"] * 2})
