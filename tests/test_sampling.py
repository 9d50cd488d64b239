"""What samples leave in their folder."""

import json
from pathlib import Path

import pytest
import torch

from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.sampling import Sampling, Validation, parse_bucket, write_samples


def write(folder: Path, frames: int, *prompts: str) -> set[str]:
    requests = Sampling.of(Validation(prompts=list(prompts)), Bucket(frames, 16, 16))
    video = torch.zeros(frames, 16, 16, 3, dtype=torch.uint8)
    write_samples(folder, requests, [video] * len(prompts))
    listed = json.loads((folder / "samples.json").read_text())
    assert [sample["prompt"] for sample in listed] == list(prompts)
    return {path.name for path in folder.iterdir()}


def test_samples_written_a_second_time_leave_none_of_the_first(tmp_path: Path) -> None:
    assert write(tmp_path, 5, "a", "b") == {"000.mp4", "001.mp4", "samples.json"}
    (tmp_path / "mine.png").touch()
    assert write(tmp_path, 5, "a") == {"000.mp4", "samples.json", "mine.png"}
    assert write(tmp_path, 1, "c") == {"000.png", "samples.json", "mine.png"}


@pytest.mark.parametrize("text", ["²x32", "٣x32", "0x32", "32", "-1x32", "x32"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a size; write HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH"):
        parse_bucket(text, "--size")
