"""The bundled base model: loaded without options it draws what it is asked for, and the demo trains it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from omnitune.commands import demo
from omnitune.commands.bundled import bundled_run
from omnitune.commands.plan import plan
from omnitune.commands.train import train
from omnitune.families.files import ModelFolder

ASSETS = Path(__file__).parents[2] / "omnitune" / "assets"
POCKET = ASSETS / "pocket-wan"
HELD_OUT = Path(__file__).parents[2] / "recipes" / "pocket" / "evaluation" / "pictures"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(POCKET)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str, frames: int = 1) -> np.ndarray[Any, Any]:
    """(T, H, W, 3) in [0, 1]."""
    made = pipe(
        prompt=prompt, negative_prompt="", height=64, width=64, num_frames=frames, num_inference_steps=12,
        guidance_scale=4.0, generator=torch.Generator().manual_seed(0), output_type="np",
    ).frames[0]  # fmt: skip
    return np.asarray(made)


@pytest.mark.parametrize("beside", [False, True])
def test_it_goes_by_its_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if beside:
        (tmp_path / POCKET.name).symlink_to(POCKET)
    own = Path(POCKET.name) if beside else POCKET
    assert ModelFolder(POCKET.name).local == own
    lines = {path: plan(bundled_run(f"model.path={path}")) for path in (POCKET.name, str(POCKET))}
    first, second = ([line for line in found if "model:" not in line] for found in lines.values())
    assert first == second


def test_colours_are_those_of_the_prompt(pipeline: Any) -> None:
    middle = {
        colour: draw(pipeline, f"{colour} circle, 3d emoji")[0, 24:40, 24:40].mean((0, 1))
        for colour in ("red", "green", "blue")
    }
    for i, colour in enumerate(middle):
        assert middle[colour].argmax() == i, middle


def test_clips_move(pipeline: Any) -> None:
    clip = draw(pipeline, "tornado, animated 3d emoji", frames=17)
    assert clip.shape == (17, 64, 64, 3)
    assert np.abs(np.diff(clip, axis=0)).mean() > 0.002


def test_weights_are_in_half_precision_and_nothing_tells_of_a_machine() -> None:
    for path in POCKET.glob("*/*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    for path in POCKET.rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text())


def test_the_demo_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["schedule.steps=2", "schedule.warmup=0", "validation.prompts=[]", "validation.images=[]"]
    train(bundled_run(*words))
    assert (demo.FOLDER / "weights" / "pytorch_lora_weights.safetensors").is_file()
    losses = [json.loads(line)["loss"] for line in (demo.FOLDER / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    # Black shapes are not what it draws, at captions that it knows.
    assert losses[0] == pytest.approx(1.1376, rel=1e-3)


def test_it_knows_emoji_that_it_never_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["schedule.steps=1", "schedule.warmup=0", "validation.prompts=[]", "validation.images=[]"]
    train(bundled_run(*words, f"data.sources.0.path={HELD_OUT}"))
    (line,) = (demo.FOLDER / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] < 0.6  # with weights at random: near 1.3


def test_a_change_is_told_against_the_value_before() -> None:
    assert demo.change({"before": 0.2, "after": 0.05}) == pytest.approx(-0.75)
