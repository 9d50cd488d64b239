"""Small inputs of vision-language runs that once went wrong; each folder's README says what is right."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnitune import config
from omnitune.data.conversations.kind import ConversationData
from omnitune.families.vlm.family import Vlm
from omnitune.resolve import resolve_first

CASES = Path(__file__).parent


class Case:
    """A case's run in a folder of its own, on a tiny model of a type."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model

    def words(self, command: str, *overrides: str) -> list[str]:
        return [command, "run.yaml", f"model.path={self.model}", *overrides]

    def rows(self, *overrides: str) -> tuple[list[dict[str, Any]], list[str], Vlm]:
        """What each conversation becomes, the notes, and the family."""
        first = resolve_first(config.load(self.folder / "run.yaml", self.words("", *overrides)[2:])[0])
        index, data = first.index(), first.bound
        assert isinstance(data, ConversationData)
        assert isinstance(first.shape, Vlm)
        return [data.tokens.read(row.keys[0]) for row in index.items], [*index.notes], first.shape


@pytest.fixture
def case(
    tiny_vlm: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Case]:
    def of(name: str, model_type: str) -> Case:
        shutil.copytree(CASES / name, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        return Case(tmp_path, tiny_vlm(model_type, generation_tags=False))

    return of


def test_seconds_are_those_of_the_frames_that_the_processor_takes(case: Any) -> None:
    ((row,), _, _) = case("vlm-clip-grid-seconds", "qwen2_5_vl").rows()
    assert row["video_grid_thw"][0, 0] == 3  # frames 0 8 16 25 33 41
    assert row["second_per_grid_ts"].tolist() == pytest.approx([1.0417], abs=1e-4)


def test_marks_are_the_times_of_a_variable_rate(case: Any) -> None:
    ((row,), _, family) = case("vlm-clip-times", "qwen3_vl").rows()
    text = family.files.processor.tokenizer.decode(row["input_ids"])
    told = [float(word.split(" ")[0]) for word in text.split("<")[1:] if " seconds>" in word]
    # Two frames to a mark, each half a second behind the one before, up to the clip's end at 6.7.
    assert told == pytest.approx([0.25 + 1.1 * i for i in range(7)], abs=0.25)
