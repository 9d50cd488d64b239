"""What samples leave in their folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from omnitune.cli import parser
from omnitune.data import media
from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.sampling import Question, Sampling, Validation, parse_bucket, write_samples


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


def test_named_media_of_the_command_line_gather_by_name() -> None:
    words = [
        "sample",
        "runs/x",
        "--media",
        "control=a.mp4",
        "--media",
        "mask=m.png",
        "--media",
        "control=b=.mp4",
    ]
    assert parser().parse_args(words).media == {
        "control": [Path("a.mp4"), Path("b=.mp4")], "mask": [Path("m.png")]
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parser().parse_args([*words, "--media", "control"])


def test_media_are_cut_to_the_size_of_the_sample(tmp_path: Path) -> None:
    picture, clip, short = tmp_path / "a.png", tmp_path / "b.mp4", tmp_path / "c.mp4"
    media.write_image(picture, np.zeros((40, 90, 3), np.uint8))
    media.write_video(clip, np.zeros((12, 40, 90, 3), np.uint8), 8)
    media.write_video(short, np.zeros((3, 40, 90, 3), np.uint8), 8)
    options = Validation(prompts=["a"], images=[picture], media={"control": [clip]})
    (request,) = Sampling.of(options, Bucket(9, 32, 32))
    assert {name: frames.shape for name, frames in request.media.items()} == {
        "first_frame": (1, 32, 32, 3), "control": (9, 32, 32, 3)
    }  # fmt: skip
    with pytest.raises(UserError, match=r"c.mp4: has 3 frames, and samples have 9; give more"):
        Sampling.of(Validation(prompts=["a"], media={"control": [short]}), Bucket(9, 32, 32))


def test_questions_are_written_with_their_answers(tmp_path: Path) -> None:
    options = Validation(prompts=["What is it?"], images=[tmp_path / "fox.png"], max_tokens=3)
    requests = Question.of(options, None)
    assert [path.read_text() for path in write_samples(tmp_path, requests, ["a fox"])] == ["a fox\n"]
    (described,) = json.loads((tmp_path / "samples.json").read_text())
    fox = str(tmp_path / "fox.png")
    assert described == {"file": "000.txt", "prompt": "What is it?", "image": fox, "answer": "a fox"}
