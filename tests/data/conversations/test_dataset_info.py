"""Data sets as LLaMA-Factory's `dataset_info.json` describes them."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Make

from omnitune.data.conversations.conversation import Media, Message
from omnitune.data.conversations.scan import scan
from omnitune.data.conversations.sources import ConversationSource
from omnitune.data.sources import Scan
from omnitune.errors import UserError
from omnitune.files import File, Hashes

MESSAGES = [{"role": "user", "content": "<image>Who are they?"}, {"role": "assistant", "content": "Kane."}]
DEMO = {
    "file_name": "mllm_demo.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def read(root: Path, path: str = "data", **options: Any) -> Scan:
    return scan([ConversationSource(path=Path(path), **options)], root, Hashes(root / "memo"))


def mistakes(root: Path, path: str = "data", **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(root, path, **options)
    return str(caught.value).split("\n")


def describe(make: Make, **entries: Any) -> None:
    make.text("data/dataset_info.json", json.dumps(entries))


@pytest.fixture
def demo(make: Make) -> Path:
    """The demo set, whose pictures lie beside its dataset_info.json."""
    make.text("data/mllm_demo.json", json.dumps([{"messages": MESSAGES, "images": ["demo/1.jpg"]}] * 4))
    make.text("data/alpaca/en.json", json.dumps([{"instruction": "Hi", "input": "", "output": "Yes"}]))
    return make.image("data/demo/1.jpg")


@pytest.mark.parametrize("path", ["data", "data/dataset_info.json"])
def test_the_demo_set_is_read(make: Make, tmp_path: Path, demo: Path, path: str) -> None:
    describe(make, mllm_demo=DEMO)
    found = read(tmp_path, path)
    shown = Media("image", (File(demo),), 12, 8)
    expected = (Message("user", (shown, "Who are they?")), Message("assistant", ("Kane.",)))
    assert [item.messages for item in found.items] == [expected] * 4
    assert [item.id for item in found.items][:2] == ["mllm_demo/1", "mllm_demo/2"]
    assert found.items[1].where == "data/mllm_demo.json: item 2"
    assert found.notes == []


@pytest.mark.usefixtures("demo")
def test_data_sets_are_chosen_by_name(make: Make, tmp_path: Path) -> None:
    hub = {"hf_hub_url": "org/pets", "split": "test"}
    describe(make, demo=DEMO, en={"file_name": "alpaca/en.json"}, pets=hub, rank={**DEMO, "ranking": True})
    for dataset in ("en,demo", ["en", "demo"]):
        found = read(tmp_path, dataset=dataset)
        assert [item.id for item in found.items][:2] == ["en/1", "mllm_demo/1"]
        assert found.notes == []
    found = read(tmp_path)
    assert [item.id for item in found.items][3:] == ["mllm_demo/4", "en/1"]
    assert found.notes == [
        "data/dataset_info.json: read demo, en; left out: pets (hf_hub_url), rank (ranking)"
    ]
    assert mistakes(tmp_path, dataset=["pets", "rank", "dem", "x"]) == [
        "data/dataset_info.json: pets: lies at hf_hub_url 'org/pets'; "
        "download it and state its file as file_name",
        "data/dataset_info.json: rank: ranking is true, but preferences are not trained on; "
        "choose another data set",
        "data/dataset_info.json: dem: is not there; did you mean demo?",
        "data/dataset_info.json: x: is not there; it holds demo, en, pets and 1 more",
    ]


@pytest.mark.usefixtures("demo")
def test_num_samples_of_a_run_comes_before_that_of_a_data_set(make: Make, tmp_path: Path) -> None:
    describe(make, demo={**DEMO, "num_samples": 2})
    assert [item.id for item in read(tmp_path).items] == ["mllm_demo/1", "mllm_demo/3"]
    assert [item.id for item in read(tmp_path, num_samples=1).items] == ["mllm_demo/1"]
    describe(make, demo={**DEMO, "num_samples": 5})
    assert mistakes(tmp_path) == [
        "data/dataset_info.json: demo: num_samples is 5, but there are 4 items; lower it"
    ]


@pytest.mark.usefixtures("demo")
def test_what_dataset_info_states_is_not_stated_twice(make: Make, tmp_path: Path) -> None:
    describe(make, demo=DEMO)
    stated = "has no effect, dataset_info.json states it; remove it"
    assert mistakes(tmp_path, format="openai", columns={"images": "x"}, tags={"role_tag": "x"}) == [
        f"data.sources: data/dataset_info.json: {key} {stated}" for key in ("format", "columns", "tags")
    ]


@pytest.mark.usefixtures("demo")
def test_media_may_lie_elsewhere(make: Make, tmp_path: Path) -> None:
    describe(make, demo=DEMO)
    other = make.image("other/demo/1.jpg")
    assert read(tmp_path, media=Path("other")).items[0].media[0].files == (File(other),)


ENTRIES: list[tuple[Any, str]] = [
    (5, 'is 5, not an object; write {"file_name": "train.json"}'),
    ({}, "file_name is missing; add it, relative to dataset_info.json"),
    ({"file_name": 5}, "file_name is 5, not the name of a file; correct it"),
    (
        {"file_name": "en.json", "formatig": "alpaca"},
        "'formatig' is not a key of a data set; did you mean formatting?",
    ),
    (
        {"file_name": "en.json", "formatting": "chatml"},
        "formatting is 'chatml'; choose from sharegpt, openai, alpaca",
    ),
    ({"file_name": "en.json", "ranking": 1}, "ranking is 1; write false or remove it"),
    (
        {"file_name": "en.json", "num_samples": 0},
        "num_samples is 0; write a number from 1, or remove it",
    ),
    ({"file_name": "en.json", "columns": []}, "columns is [], not an object; correct it"),
    ({"file_name": "en.json", "columns": {"query": 5}}, "columns.query is 5, not text; put it in quotes"),
    ({"file_name": "en.json", "subset": "x"}, "subset has no effect on a local file; remove it"),
    ({"file_name": "en.json", "split": "test"}, "split has no effect on a local file; remove it"),
    (
        {"file_name": "en.json", "columns": {"messages": "x"}},
        "columns.messages has no effect on alpaca items; remove it, or state another format",
    ),
    (
        {"file_name": "en.json", "columns": {"system": "x"}},
        "columns.system is 'x', which no item has; correct it or remove it",
    ),
    (
        {"file_name": "en.json", "formatting": "sharegpt"},
        "no item has 'conversations', as sharegpt items do; "
        "state its name as columns.messages, or another format",
    ),
    ({"file_name": "gone.json"}, "gone.json: does not exist (looked for {root}/data/gone.json)"),
    ({"file_name": "folder"}, "folder: is a folder; name a .json or .jsonl file"),
]


@pytest.mark.parametrize(("entry", "message"), ENTRIES, ids=range(len(ENTRIES)))
def test_a_wrong_entry_is_told(make: Make, tmp_path: Path, entry: Any, message: str) -> None:
    make.text("data/en.json", json.dumps([{"instruction": "Hi", "output": "Yes"}]))
    make.text("data/folder/x", "")
    describe(make, en=entry)
    told = message.replace("{root}", str(tmp_path))
    assert mistakes(tmp_path, dataset="en") == [f"data/dataset_info.json: en: {told}"]


@pytest.mark.usefixtures("demo")
def test_what_has_its_usual_value_is_no_mistake(make: Make, tmp_path: Path) -> None:
    usual = {"split": "train", "subset": None, "ranking": False, "num_samples": None}
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": None}
    describe(make, en={"file_name": "alpaca/en.json", "columns": columns, **usual})
    assert [item.id for item in read(tmp_path).items] == ["en/1"]


TEXTS = {
    "": "data/dataset_info.json: is empty; write JSON into it",
    '{\n"a": x}': "data/dataset_info.json:2: is not JSON (Expecting value at column 6); correct it there",
    "[]": 'data/dataset_info.json: is []; write {"name": {"file_name": "train.json"}}',
    "{}": 'data/dataset_info.json: is {}; write {"name": {"file_name": "train.json"}}',
    '{"pets": {"hf_hub_url": "org/pets"}}': (
        "data/dataset_info.json: none of its data sets can be read: pets (hf_hub_url); "
        "download a file and state it as file_name"
    ),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.items(), ids=range(len(TEXTS)))
def test_what_describes_nothing_is_told(make: Make, tmp_path: Path, text: str, message: str) -> None:
    make.text("data/dataset_info.json", text)
    assert mistakes(tmp_path) == [message]


def test_a_dataset_info_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "data/dataset_info.json") == [
        f"data.sources: data/dataset_info.json: does not exist (looked for {tmp_path}/data/dataset_info.json)"
    ]
