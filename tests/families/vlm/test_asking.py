"""Questions while training and after it are shown as the run's data are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from chat_items import picture
from test_export_vlm import Left

from omnitune.batch import Batch
from omnitune.families.vlm.encoder import ConversationEncoder
from omnitune.sampling import Question


def test_the_pixels_of_a_question_are_those_of_the_data(
    tiny_vlm: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Batch] = []
    encode = ConversationEncoder.encode_prompt

    def keep(self: ConversationEncoder, conversation: object) -> Batch:
        asked.append(encode(self, conversation))  # type: ignore[arg-type]
        return asked[-1]

    monkeypatch.setattr(ConversationEncoder, "encode_prompt", keep)
    base = tiny_vlm("qwen2_vl")
    question = Question("What is it?", picture().files[0].path, 2)
    for pixels in ([784, 784], [784, 3136]):
        folder = tmp_path / str(pixels[1])
        left = Left(base, folder, trainable="full", data={"image_pixels": pixels}, schedule={"steps": 1})
        left.family.sample([question])
    grids = [one["image_grid_thw"].prod() for one in asked]
    assert torch.stack(grids).tolist() == [4, 16]  # patches of 14 pixels
