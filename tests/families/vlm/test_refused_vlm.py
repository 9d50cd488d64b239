"""What a run of a vision-language model says that has no effect, or cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_items import ASSETS

from omnitune.cli import main


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validation.steps=5", "validation.steps: has no effect, the model answers in text; remove it"),
        ("validation.size=64x64", "validation.size: has no effect, the model answers in text; remove it"),
        (
            "conditions=[{name: caption_dropout}]",
            "conditions: caption_dropout needs caption of each sample, and conversations bring media",
        ),
        ("objective={name: flow_matching}", "a diffusion objective trains a denoiser; family vlm is not one"),
        ("data.packing=true", "data.packing: conversations of gemma3 cannot share a row"),
        ("freeze_llm=true", "nothing is left to train"),
    ],
)
def test_it_is_refused(
    tiny_vlm: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], override: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    picture = ASSETS / "pictures" / "train" / "rocket.png"
    said = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "a rocket"}]
    Path("train.json").write_text(json.dumps([{"messages": said, "images": [str(picture)]}]))
    described = {
        "model": {"family": "vlm", "path": str(tiny_vlm("gemma3")), "dtype": "float32"},
        "objective": {"name": "causal_lm"},
        "trainable": "full",
        "data": {"name": "conversations", "sources": [{"path": "train.json"}]},
    }
    Path("run.yaml").write_text(json.dumps(described))
    assert main(["plan", "run.yaml"]) == 0
    capsys.readouterr()
    assert main(["plan", "run.yaml", override]) == 2
    assert message in capsys.readouterr().err
