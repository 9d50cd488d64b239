"""An unknown key is answered with the option that was meant: of its own section, or as others call it."""

import copy
from typing import Any

import pytest

from omnitune import load_run
from omnitune.config import schema
from omnitune.config.peer_words import OTHERWISE, OURS
from omnitune.errors import UserError

RUN: dict[str, Any] = {
    "name": "run",
    "model": {"family": "wan", "path": "m"},
    "trainable": {"lora": {}},
    "data": {"sources": [{"path": "clips"}], "buckets": {"frames": [1], "sizes": ["32x32"]}},
    "objective": {"name": "epsilon"},
    "optimizer": {"name": "adam"},
    **{name: {} for name in ("schedule", "checkpoint", "validation", "parallel", "memory", "tracking")},
    "ema": {},
}
SECTIONS = [name for name, value in RUN.items() if isinstance(value, dict)]


def told(place: str, key: str) -> str:
    """What is said of one unknown key, without its line and name."""
    values = copy.deepcopy(RUN)
    section = values
    for part in filter(None, place.split(".")):
        section = section[part]
    section[key] = 1
    with pytest.raises(UserError) as caught:
        load_run(values)
    (line,) = str(caught.value).split("\n")
    return line.partition("is not an option")[2]


def keys(place: str) -> set[str]:
    """The options of a section, of the kind that RUN states."""
    found = schema()
    kind = {"objective": "Epsilon", "optimizer": "Adam", "trainable": "LoraEverywhere"}
    name = "Checkpoints" if place == "checkpoint" else kind.get(place, place.capitalize())
    return set(found["$defs"][name]["properties"])


def exists(dotted: str) -> bool:
    """Whether a dotted path names an option: a value of a wrong type there is told as such."""
    values = copy.deepcopy(RUN)
    if dotted == "data.max_length":
        values["data"] = {"name": "conversations", "sources": ["x"]}
    if dotted.startswith("objective."):
        values["objective"] = {"name": "epsilon" if "snr" in dotted else "flow_matching"}
    *parents, last = dotted.split(".")
    section = values
    for part in parents:
        section = section[part]
    section[last] = [{"no": "value"}]
    with pytest.raises(UserError) as caught:
        load_run(values)
    return f"{dotted} is not an option" not in str(caught.value) and dotted in str(caught.value)


@pytest.mark.parametrize("ours", OURS)
def test_what_others_call_an_option_is_answered_with_ours(ours: str) -> None:
    assert exists(ours)
    for word in OURS[ours].split():
        section = ours.rpartition(".")[0]
        for place in {"", section}:
            if word != ours.rpartition(".")[2] or not place:
                assert told(place, word) == f"; here it is {ours}", (place, word)


def test_what_has_no_option_of_its_own_is_answered_with_the_way() -> None:
    for theirs, way in OTHERWISE.items():
        for word in theirs.split():
            assert told("", word) == f"; {way}"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_misspelt_key_is_answered_with_a_key_of_its_section(section: str) -> None:
    for key in keys(section):
        wrong = key + "z"
        answer = told(section, wrong)
        if not any(wrong in words.split() for words in (*OURS.values(), *OTHERWISE)):
            assert answer.removeprefix("; did you mean ").removesuffix("?") in keys(section), (wrong, answer)


def test_a_key_of_another_section_is_answered_with_its_place() -> None:
    assert told("optimizer", "batch_size") == " here; there is data.batch_size"
    assert told("data", "warmup") == " here; there is schedule.warmup"
    assert told("schedule", "checkpointing") == " here; there is memory.checkpointing"
    assert told("objective", "shift") == " here; there is objective.shift of flow_matching"
    assert told("schedule", "logit_sdt") == "; did you mean objective.logit_std of flow_matching?"
