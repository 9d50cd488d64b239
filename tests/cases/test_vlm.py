"""Small inputs of vision-language runs that once went wrong; each folder's README says what is right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnitune import config
from omnitune.cli import main
from omnitune.data.conversations.kind import ConversationData
from omnitune.families.vlm.family import Vlm, conversation_of
from omnitune.resolve import resolve_first
from omnitune.sampling import Question
from omnitune.testing.tiny_vlm import chat_template

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


def test_text_that_spells_a_placeholder_can_be_told(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = case("vlm-literal-image", "qwen2_5_vl")
    assert main(given.words("check")) == 2
    told = capsys.readouterr().err
    for item, counts in ((1, "2 <image> but 1 in images"), (3, "1 <image> but 0 in images")):
        way = "name one file for each, or write \\<image> for the text itself"
        assert f"train.json: item {item}: {counts}; {way}" in told
    assert "item 2" not in told
    # As the messages say.
    items = json.loads((given.folder / "train.json").read_text())
    answered, asked = items[0]["messages"][1], items[2]["messages"][0]
    for message in (answered, asked):
        message["content"] = message["content"].replace("<image>", r"\<image>")
    (given.folder / "train.json").write_text(json.dumps(items))
    rows, notes, family = given.rows()
    decode = family.files.processor.tokenizer.decode
    learned = [decode(row["labels"][row["labels"] != -100]) for row in rows]
    end = "<|im_end|>"
    assert learned[0] == f"Press New.\n\n![fig 3](<image>){end}"
    assert learned[1] == f"![fig 3](<image>){end}"
    assert "What does the SVG tag <image> do?" in decode(rows[2]["input_ids"])
    assert [len(row.get("image_grid_thw", ())) for row in rows] == [1, 1, 0, 1]
    (note,) = [note for note in notes if "in an answer" in note]  # item 4 was silent
    assert note.startswith("1 conversation shows a picture or a clip in an answer; write \\<image>")


def test_a_long_picture_is_made_smaller_in_its_shape(case: Any) -> None:
    ((row,), (note,), _) = case("vlm-long-picture-shrink", "qwen2_5_vl").rows()
    assert len(row["input_ids"]) <= 60
    assert note.startswith("1 conversation has smaller pictures, to fit into a row")


def test_thoughts_that_the_template_leaves_out_are_told(case: Any) -> None:
    given = case("vlm-thoughts-dropped", "qwen3_vl")
    (given.folder / "t.jinja").write_text(chat_template("chatml_thinking", image="<|image_pad|>"))
    (_, notes, _) = given.rows("model.options={chat_template: t.jinja}")
    assert "the chat template leaves out the thoughts of 1 answer: train.json: item 1" in notes


def test_a_cut_saved_with_the_tokenizer_is_off(case: Any) -> None:
    given = case("vlm-tokenizer-truncation", "qwen2_5_vl")
    model = given.folder / "model"
    shutil.copytree(given.model, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    cut = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "truncation": cut}))
    given.model = model
    ((row,), _, family) = given.rows()
    learned = row["labels"][row["labels"] != -100]
    assert family.files.processor.tokenizer.decode(learned).endswith("word59 END<|im_end|>")
    asked = family.conversation_encoder(family.asked_as).encode_prompt(
        conversation_of(Question(f"{'word ' * 300}?"))
    )
    assert asked["input_ids"].shape[1] > 300
