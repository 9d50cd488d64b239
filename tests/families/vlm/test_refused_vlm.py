"""What a run of a vision-language model says that has no effect, or cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from chat_items import ASSETS

from omnitune.cli import main
from omnitune.errors import UserError
from omnitune.families.vlm import family


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
        (
            "model.options={attention: flash_attention_2}",
            "model.options.attention: flash_attention_2 needs the package flash-attn, which is not installed",
        ),
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


def test_flash_attention_takes_no_rows_of_several_conversations(
    tiny_vlm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "find_spec", lambda name: object())  # as if the package were there
    options = family.VlmOptions(attention="flash_attention_2")
    shape = family.Vlm.load(str(tiny_vlm("llava")), "meta", torch.float32, options=options)
    with pytest.raises(UserError, match=r"^data.packing: flash_attention_2 takes no mask"):
        shape.check_packing()
    with pytest.raises(UserError, match=r"^model.options.attention: llava cannot compute flash_attention_2"):
        family.Vlm.load(str(tiny_vlm("llava")), "cpu", torch.float32, options=options)


def test_rows_longer_than_learned_positions_are_refused(tiny_vlm: Callable[..., Path]) -> None:
    shape = family.Vlm.load(str(tiny_vlm("blip-2")), "meta", torch.float32)
    shape.check_length(2048)
    with pytest.raises(UserError, match=r"^data.max_length: 2049 is more than the 2048 places in a text"):
        shape.check_length(2049)
    family.Vlm.load(str(tiny_vlm("llava")), "meta", torch.float32).check_length(10**6)
