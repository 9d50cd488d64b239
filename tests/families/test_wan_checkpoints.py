"""What sets Wan's checkpoints apart, beyond what every family is held to."""

import json
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import Case, run_of, write_clips
from test_family_export import STEPS, trained
from test_training import loss_of, seen, trainer_of

from omnitune import config
from omnitune.commands.train import train
from omnitune.errors import UserError
from omnitune.evaluate import EvaluateRequest, evaluator
from omnitune.families.wan import Wan, WanOptions
from omnitune.report import write_report
from omnitune.resolve import resolve_run
from omnitune.testing.runs import write_run

I2V, EXPERTS, PER_TOKEN = (
    Case("wan", "i2v", "first"), Case("wan", "t2v-a14b", None), Case("wan", "ti2v-5b", "first")
)  # fmt: skip
BOTH = {"transformer": "transformer.blocks", "transformer_2": "transformer_2.blocks"}


@pytest.mark.parametrize("options", [{"text_length": 256}, {"fold_padding": True}])
@pytest.mark.parametrize("variant", ["i2v", "flf2v"])
def test_a_checkpoint_with_picture_tokens_keeps_its_text_length(
    variant: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"tells pictures from texts by a length of 512"):
        Wan.load(Wan.variants[variant], "meta", torch.float32, options=WanOptions(**options))
    Wan.load(Wan.variants["t2v"], "meta", torch.float32, options=WanOptions(**options))


def test_a_text_of_no_length_is_refused() -> None:
    with pytest.raises(UserError, match=r"text_length: 0 is not 1 or more"):
        Wan.load(Wan.variants["t2v"], "meta", torch.float32, options=WanOptions(text_length=0))


def test_a_clean_first_frame_is_the_mode_as_the_pipeline_has_it(model, tmp_path: Path) -> None:
    trainer = trainer_of(PER_TOKEN, model(PER_TOKEN), tmp_path)
    batch = next(trainer.read())[0]
    with seen() as found:
        loss_of(trainer)
    mean, logvar = batch["moments"].chunk(2, dim=1)
    assert (logvar > -20).any(), "a posterior without chance would hide it"
    family: Any = trainer.family
    torch.testing.assert_close(found[-1].x["x"][:, :, :1], family.normalised(mean[:, :, :1]))
    assert not torch.allclose(found[-1].x0["x"][:, :, 1:], family.normalised(mean[:, :, 1:]))


def rules(*cores: str) -> list[dict[str, Any]]:
    return [{"params": BOTH[core], "lora": {"rank": 4, "alpha": 10}} for core in cores]


def test_a_run_starts_from_the_adapters_of_both_experts(model, tmp_path: Path) -> None:
    given = model(EXPERTS)
    (tmp_path / "first").mkdir()
    live, _, out = trained(EXPERTS, given, tmp_path / "first", rules(*BOTH))
    before = {n: p.detach() for n, p in live.components.named_parameters() if ".lora_" in n}
    trainer = trainer_of(
        EXPERTS, given, tmp_path / "second", trainable=rules(*BOTH), init_from=str(out / "weights")
    )
    after = {n: p.detach() for n, p in trainer.family.components.named_parameters() if ".lora_" in n}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    low = out / "weights" / "pytorch_lora_weights_2.safetensors"
    alone = trainer_of(
        EXPERTS, given, tmp_path / "third", trainable=rules("transformer_2"), init_from=str(low)
    )
    mine = {n: p for n, p in alone.family.components.named_parameters() if ".lora_" in n}
    assert all(torch.equal(before[n], p) for n, p in mine.items())
    for path, cores, message in (
        (low, ["transformer"], "is not of what the rules adapt, transformer; give pytorch_lora_weights"),
        (out / "weights", ["transformer"], "_2.safetensors is not of what the rules adapt"),
        (low, list(BOTH), "lacks transformer.blocks"),
    ):
        with pytest.raises(UserError, match=message):
            trainer_of(EXPERTS, given, tmp_path / "refused", trainable=rules(*cores), init_from=str(path))
    write_report(out)
    page = (out / "report.html").read_text()
    assert 'weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True)' in unescape(page)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == STEPS


def lists(folder: Path) -> Path:
    """CogVideo's layout: two clips, and a picture that stands for the first frame of each."""
    clips = write_clips(folder / "clips", 9)
    Image.fromarray(np.full((64, 64, 3), (255, 0, 0), np.uint8)).save(folder / "red.png")
    names = sorted(clip.name for clip in clips.glob("*.mkv"))
    for file, lines in (
        ("prompts.txt", ["rocket", "tornado"]), ("videos.txt", [f"clips/{name}" for name in names]),
        ("images.txt", ["red.png"] * 2),
    ):  # fmt: skip
        (folder / file).write_text("\n".join(lines) + "\n")
    return folder


def run_on(case: Case, model: Path, folder: Path, **data: Any) -> Path:
    """A run on `lists`."""
    file = run_of(case, model, folder)
    described = json.loads(file.read_text())
    described["data"] |= {"sources": [{"name": "line_lists", "path": str(lists(folder))}], **data}
    return write_run(file, described)


def test_a_picture_of_images_txt_takes_the_place_of_the_first_frame(model, tmp_path: Path) -> None:
    run = config.validate(config.read(run_on(I2V, model(I2V), tmp_path)))
    job = resolve_run(run)
    index = job.index()
    samples = job.bound.dataset(index)
    first = samples.load("first_frame", samples.inputs(0))
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1, 1)
    assert torch.equal(first, red.expand_as(first))
    assert not torch.equal(samples.load("pixels", samples.inputs(0))[:, :1], first)
    first, second = (samples.input_keys(samples.inputs(i))["first_frame"] for i in (0, 1))
    assert first == second


@pytest.mark.parametrize(
    ("case", "data", "message"),
    [
        (PER_TOKEN, {}, "is given the clip's own; set images: null"),
        (I2V, {"window": "middle"}, "the first frame of a clip that is shown from elsewhere"),
        (I2V, {"crop": "random"}, "the first frame of a clip that is shown from elsewhere"),
    ],
)
def test_a_picture_that_would_not_be_what_the_clip_goes_on_from_is_refused(
    model, tmp_path: Path, case: Case, data: dict[str, Any], message: str
) -> None:
    run = config.validate(config.read(run_on(case, model(case), tmp_path, **data)))
    with pytest.raises(UserError, match=message):
        resolve_run(run).index()


def test_an_image_to_video_run_is_evaluated_at_a_size_and_with_pictures(model, tmp_path: Path) -> None:
    file = run_of(I2V, model(I2V), tmp_path, schedule={"steps": 1})
    run = config.validate(config.read(file))
    pictures = write_clips(tmp_path / "pictures", 1, [f"picture {i}" for i in range(9)], seed=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        folder = train(run).folder
        request = EvaluateRequest(
            folder=folder, data=tmp_path / "clips", fit=[pictures], size="9x32x32", steps=1,
            metrics="loss,text_image,motion", base=True,
        )  # fmt: skip
        rows = {row.name: row.value for row in evaluator(request).measures()}
    assert np.isfinite(rows["held-out loss"])
    assert any(name.startswith("AUC") for name in rows)
