"""What every family does with the commands: init, plan, sizes, samples, buckets of several sizes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import CAPTIONS, SIDES, Case, cases, run_of, write_clips

from omnitune import config
from omnitune.cli import main
from omnitune.commands.init import InitRequest, init
from omnitune.commands.models import models
from omnitune.commands.plan import plan
from omnitune.commands.train import train
from omnitune.errors import UserError
from omnitune.families import REGISTRY, resolve
from omnitune.families.base import Denoiser
from omnitune.testing import runs

EVERY = pytest.mark.parametrize("case", list(cases()), ids=str)
VARIANTS = [
    (name, variant)
    for name in REGISTRY
    if issubclass(resolve(name), Denoiser)
    for variant in resolve(name).variants
]
Model = Callable[[Case], Path]
TALL = 96


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_what_init_writes_is_planned_without_weights(family: str, variant: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(init(InitRequest(family, variant)))
    run, _ = config.load(file)
    told = "\n".join(plan(run))
    assert f"model: {resolve(family).variants[variant]}, from shipped configuration" in told
    assert "shipped configuration" in told
    assert run.model.options == {"text_length": resolve(family).Options().text_length}


def test_models_lists_every_checkpoint_with_its_smallest_size() -> None:
    listed = models()
    for family, variant in VARIANTS:
        assert f"  {variant}: {resolve(family).variants[variant]}; height and width multiples of " in listed


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_a_size_it_does_not_take_is_refused_before_anything_loads(
    family: str, variant: str, tmp_path: Path
) -> None:
    cls: Any = resolve(family)
    shape = cls.load(cls.variants[variant], "meta", torch.float32, only=[])
    side = 9 * shape.limits.spatial
    file = tmp_path / "run.yaml"
    file.write_text(init(InitRequest(family, variant)))
    words = [
        "data.buckets.area=null", f"data.buckets.sizes=[{side + 1}x{side}]", "validation.size=null"
    ]  # fmt: skip
    with pytest.raises(UserError, match=f"{side + 1}x{side} is not.*{side}x{side}"):
        list(plan(config.load(file, words)[0]))
    if shape.limits.most_frames != 1:
        least = shape.limits.temporal + 1
        with pytest.raises(UserError, match=rf"frames: {least + 1} is not .*the nearest is {least}"):
            list(plan(config.load(file, [f"data.buckets.frames=[{least + 1}]"])[0]))


@EVERY
def test_samples_are_made_while_training(case: Case, model: Model, tmp_path: Path) -> None:
    ends = {"first": ["images"], "last": ["last_images"], "both": ["images", "last_images"]}
    Image.fromarray(np.full((SIDES, 2 * SIDES, 3), 120, np.uint8)).save(tmp_path / "given.png")
    given = {key: [str(tmp_path / "given.png")] for key in ends.get(case.frames or "", [])}
    sampling = {"prompts": ["a cat plays with a ball of wool"], "steps": 2, "guidance": 2.0, **given}
    file = run_of(case, model(case), tmp_path, validation=sampling, schedule={"steps": 1})
    run = config.validate(config.read(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        folder = tmp_path / train(run).folder
    for step in ("step-00000000", "step-00000001"):
        (sample,) = [p for p in (folder / "samples" / step).iterdir() if p.suffix in (".png", ".mp4")]
        assert sample.stat().st_size > 0


@EVERY
def test_several_sizes_and_pictures_beside_clips_train_in_one_run(
    case: Case, model: Model, tmp_path: Path
) -> None:
    family: Any = resolve(case.family)
    shape = family.load(str(model(case)), "meta", torch.float32)
    if shape.limits.one_size:
        pytest.skip("positions are learned for one size")
    file = run_of(case, model(case), tmp_path, schedule={"steps": 8}, trainable={"lora": {"rank": 2}})
    data = config.read(file).data
    frames = data["data"]["buckets"]["frames"]
    mixed = frames if shape.limits.least_frames > 1 else sorted({1, *frames})
    pictures = tmp_path / "pictures"
    if 1 in mixed:
        write_clips(pictures, 1, CAPTIONS, seed=30)
        data["data"]["sources"].append({"path": str(pictures)})
    data["data"]["buckets"] = {"frames": mixed, "sizes": [f"{SIDES}x{SIDES}", f"{TALL}x{SIDES}"]}
    wide = write_clips(tmp_path / "wide", frames[0], CAPTIONS, seed=40, height=TALL)
    data["data"]["sources"].append({"path": str(wide)})
    run = config.validate(config.read(runs.write_run(file, data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        folder = tmp_path / train(run).folder
    seen = {json.loads(line)["bucket"] for line in (folder / "data.jsonl").read_text().splitlines()}
    assert len(seen) == (2 if 1 not in mixed or frames == [1] else 3)
    assert all(np.isfinite(record["loss"]) for record in runs.metrics(folder))


def test_samples_of_a_trained_run_are_given_pictures_on_the_command_line(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("wan", "flf2v", "both")
    file = run_of(case, model(case), tmp_path, schedule={"steps": 1})
    run = config.validate(config.read(file))
    picture = tmp_path / "given.png"
    Image.fromarray(np.full((SIDES, SIDES, 3), 120, np.uint8)).save(picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train(run)
        words = ["sample", "runs/run", "--prompt", "rocket", "--steps", "1", "--image", str(picture)]
        assert main(words) == 2
        assert "--last-image: image-to-video samples need one for each prompt" in capsys.readouterr().err
        assert main([*words, "--image", str(picture)]) == 2
        assert "--image: 2 for 1 prompts; give one for each" in capsys.readouterr().err
        assert main([*words, "--last-image", str(picture.with_name("gone.png"))]) == 2
        assert "gone.png is not there" in capsys.readouterr().err
        assert main([*words, "--last-image", str(picture)]) == 0
    assert "000.mp4" in capsys.readouterr().out
