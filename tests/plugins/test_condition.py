"""A condition of another package: a control clip in further channels."""

import json
from collections.abc import Mapping
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from safetensors import safe_open

from omnitune import config
from omnitune.commands.train import train
from omnitune.data import media
from omnitune.errors import UserError
from omnitune.resolve import resolve_run
from omnitune.testing.runs import ASSETS, metrics, small_run, write_run

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "condition.md"
CONTROL = "grey_control:GreyControl"
RULES = [
    {"params": "transformer.patch_embedding", "lr": 1e-2},
    {"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": {"rank": 4}},
]


def run_of(folder: Path, model: Path, cache: Path | None, *conditions: str, **keys: Any) -> Path:
    described = small_run(
        model, folder, conditions=[{"name": name} for name in conditions], **{"trainable": RULES, **keys}
    )
    described["data"] |= {
        "sources": [{"path": str(clips(folder / "clips")), "media": {"control": "control_file"}}],
        "buckets": {"frames": [9], "sizes": ["32x32"]},
        "cache": None if cache is None else str(cache),
    }  # fmt: skip
    return write_run(folder / "run.yaml", described)


def clips(folder: Path) -> Path:
    """The bundled clips, and another clip beside each as its control."""
    files = sorted((ASSETS / "clips/train").glob("*.mp4"))
    (folder / "controls").mkdir(parents=True)
    rows = []
    for file, control in zip(files, [*files[1:], files[0]], strict=True):
        copy(file, folder)
        copy(control, folder / "controls" / file.name)
        rows.append({"file_name": file.name, "text": file.stem, "control_file": f"controls/{file.name}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(file.parent)
    return file.parent / train(config.validate(config.read(file))).folder


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


def clip() -> Path:
    return min((ASSETS / "clips/train").glob("*.mp4"))


def test_the_guide_shows_the_condition_that_is_tested() -> None:
    source = (Path(__file__).parent / "grey_control.py").read_text()
    assert sum(bool(line) for line in source.splitlines()) < 60
    assert f"```python\n{source}```" in GUIDE.read_text()


def test_a_control_changes_nothing_at_first_and_trains_cached_as_live(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Mapping[str, list[float]] = {
        name: losses(trained(run_of(tmp_path / name, tiny_wan, where, *conditions), monkeypatch))
        for name, where, conditions in (
            ("plain", cache, []), ("cached", cache, [CONTROL]), ("live", None, [CONTROL]),
        )
    }  # fmt: skip
    assert found["cached"][0] == pytest.approx(found["plain"][0], rel=1e-6)
    assert found["cached"] == pytest.approx(found["live"], rel=1e-5)
    assert found["cached"][-1] != pytest.approx(found["plain"][-1], rel=1e-6), "the control is used"


def test_validation_shows_a_control_to_the_model(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[torch.Tensor] = []  # before they are encoded, which blows up what rounding makes of them
    monkeypatch.setattr(media, "write_video", lambda path, frames, fps: written.append(torch.tensor(frames)))
    sampling = {"prompts": ["a fox"], "steps": 2, "guidance": 2.0, "size": "9x32x32"}
    given = {**sampling, "media": {"control": [str(clip())]}}
    trained(run_of(tmp_path / "plain", tiny_wan, cache, validation=sampling), monkeypatch)
    trained(run_of(tmp_path / "control", tiny_wan, cache, CONTROL, validation=given), monkeypatch)
    plain, plain_later, first, later = (frames.int() for frames in written)
    assert (first - plain).abs().max() <= 1, "zero weights: any control gives what the base gives"
    assert (later - plain_later).abs().max() > 1
    with safe_open(tmp_path / "control/runs/run/weights/pytorch_lora_weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()[CONTROL]) == {"control": "grey", "channels": 16}


@pytest.mark.parametrize(
    ("media", "message"),
    [
        ({}, "validation.media.control: every sample needs a control; give one a prompt"),
        ({"control": ["gone.mp4"]}, "validation.media.control: gone.mp4 is not there"),
        ({"control": [str(clip())], "mask": [str(clip())]}, "validation.media.mask: the model is not given"),
        ({"control": []}, "validation.media.control: every sample needs a control"),
    ],
)
def test_media_of_samples_are_held_against_the_conditions(
    tiny_wan: Path, cache: Path, tmp_path: Path, media: dict[str, Any], message: str
) -> None:
    sampling = {"prompts": ["a fox"], "media": media}
    file = run_of(tmp_path, tiny_wan, cache, CONTROL, validation=sampling)
    with pytest.raises(UserError, match=message):
        resolve_run(config.validate(config.read(file))).index()


def test_data_without_the_medium_are_refused(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    file = run_of(tmp_path, tiny_wan, cache, CONTROL)
    described = json.loads(file.read_text())
    del described["data"]["sources"][0]["media"]
    with pytest.raises(
        UserError, match=r"GreyControl needs control of each sample, and captions bring caption"
    ):
        resolve_run(config.validate(config.read(write_run(file, described))))
