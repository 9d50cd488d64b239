"""Options of other packages: found by name, held against what is asked of them."""

import re
import sys
from pathlib import Path

import pytest

from omnitune import config, load_run
from omnitune.config import as_data
from omnitune.config.run import Run
from omnitune.errors import UserError
from omnitune.export import find_format
from omnitune.families import resolve
from omnitune.requests import EvaluateRequest, ExportRequest, SampleRequest
from omnitune.sampling import in_words

PARTS = """
from omnitune import Condition, option
from omnitune.export.base import Format
from omnitune.objectives.diffusion import Diffusion


@option
class Plain(Condition):
    name: str
    strength: float = 1.0

    def __post_init__(self):
        if self.strength < 0:
            raise ValueError(f"strength must be 0 or more, not {self.strength}")


@option
class Nameless(Condition):
    strength: float = 1.0


@option
class Idle:
    name: str


class Bare(Condition):
    name = "bare"


@option
class HalfObjective(Diffusion):
    name: str


@option
class HalfChats:
    name: str


class HalfFormat(Format):
    name = "half"
    holds = "half"

    def files(self, path):
        return []


def function():
    pass
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("their_parts", None)
    return "their_parts"


def described(key: str, value: object) -> Run:
    return load_run(
        {
            "name": "run",
            "model": {"family": "wan", "path": "models/wan"},
            "trainable": "full",
            "data": {"sources": [{"path": "clips"}], "buckets": {"frames": [1], "sizes": ["32x32"]}},
            key: value,
        }
    )


def test_an_option_of_another_package_is_built(parts: str) -> None:
    (condition,) = described("conditions", [{"name": f"{parts}:Plain", "strength": 0.5}]).conditions
    assert (condition.name, condition.strength) == (f"{parts}:Plain", 0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conditions", {"name": "no_such_module:Plain"}, "put the folder of no_such_module on PYTHONPATH"),
        ("conditions", {"name": "their_parts:Missing"}, "has no attribute 'Missing'"),
        ("conditions", {"name": "their_parts:Bare"}, "put @omnitune.option above its class"),
        ("conditions", {"name": "their_parts:Nameless"}, "give it name: str = 'their_parts:Nameless'"),
        (
            "conditions",
            {"name": "their_parts:Idle"},
            "is not a subclass of omnitune.conditions.base.Condition; make it one",
        ),
        ("conditions", {"name": "their_parts:Plain", "strngth": 1}, "it has name, strength"),
        ("conditions", {"name": "their_parts:Plain", "strength": "much"}, "conditions.0.strength"),
        (
            "conditions",
            {"name": "their_parts:Plain", "strength": -1},
            "conditions.0: strength must be 0 or more",
        ),
        (
            "optimizer",
            {"name": "their_parts:Plain"},
            "build, lr, max_grad_norm, weight_decay, which every Optim",
        ),
        ("callbacks", {"name": "their_parts:Idle"}, "has no build, which every CallbackOptions has"),
        ("objective", {"name": "their_parts:Idle"}, "held_out_levels, loss"),
    ],
)
def test_what_is_wrong_with_one_is_told_with_the_way_out(
    parts: str, key: str, value: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as told:
        described(key, [value] if key in ("conditions", "callbacks") else value)
    assert message in str(told.value)
    assert str(told.value).startswith("run:")


SHORT = {
    "optimizer": ("adamw", "adam"),
    "objective": ("flow_matching", "epsilon", "v_prediction", "causal_lm"),
    "conditions": ("caption_dropout", "frame_conditioning", "their_parts:Plain"),
}


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in SHORT.items() for name in names])
def test_a_bare_name_is_short_for_a_mapping_with_it(parts: str, key: str, name: str) -> None:
    values = [[name], [{"name": name}]] if key == "conditions" else [name, {"name": name}]
    short, whole = (described(key, value) for value in values)
    assert short == whole
    assert as_data(short)[key] == as_data(whole)[key]
    assert load_run(as_data(short)) == short


@pytest.mark.parametrize("path", ["clips", "folder", "line_lists", "a/b:c", "C:/clips", "/data/x.tar:1", ""])
def test_a_bare_text_is_short_for_the_path_of_a_source(path: str) -> None:
    buckets = {"buckets": {"frames": [1], "sizes": ["32x32"]}}
    short, whole = (described("data", {"sources": [one], **buckets}) for one in (path, {"path": path}))
    assert short == whole
    chats = described("data", {"name": "conversations", "sources": ["chats.json"]})
    assert as_data(chats)["data"]["sources"][0]["path"] == "chats.json"


def test_a_value_of_any_other_shape_is_built_or_refused_where_it_stands(parts: str) -> None:
    shapes = [None, 3, 0.5, True, "x", "x:y", [], ["adamw"], [[]], [None], [{}], {"name": None}]
    shapes += [{"name": ["x:y"]}, {"name": {"x:y": 1}}, {"name": 1}]
    keys = ("optimizer", "objective", "data", "conditions", "callbacks", "model", "schedule", "trainable")
    for key, value in ((key, value) for key in keys for value in shapes):
        mistake = told_of(key, value)
        assert mistake == "built" or re.match(rf"run:\d+: {key}\b|run:1: ", mistake), (key, value, mistake)


def told_of(key: str, value: object) -> str:
    """What is said of a value; `built` if nothing."""
    try:
        described(key, value)
    except UserError as error:
        return str(error)
    return "built"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "adamm", "optimizer.name is 'adamm'; choose from adamw, adam, package.module:Class"),
        ("optimizer", ["adamw"], "optimizer: must be a name or a mapping with one, {name: ...}, not"),
        ("objective", 3, "objective: must be a name or a mapping with one, {name: ...}, not 3"),
        ("callbacks", ["their_parts:Plain"], "callbacks.0: their_parts:Plain has no build, which every"),
        ("callbacks", [{"patience": 3}], "callbacks.0: must be a name or a mapping with one"),
        ("callbacks", [{"name": None}], "callbacks.0.name is 'None'; choose from package.module:Class"),
    ],
)
def test_a_value_that_has_no_name_is_refused_where_it_stands(
    parts: str, key: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        described(key, value)


def test_the_schema_takes_short_forms() -> None:
    found = config.schema()
    shapes = found["properties"]["optimizer"]["oneOf"]
    assert any(re.fullmatch(one.get("pattern", "$"), "adamw") for one in shapes)
    sources = found["$defs"]["Data"]["properties"]["sources"]["items"]["oneOf"]
    assert {"type": "string", "description": "Short for {path: ...}."} in sources


def test_half_an_option_is_refused_before_the_cache_is_filled(parts: str) -> None:
    with pytest.raises(UserError, match="their_parts:HalfObjective has no path, target, which every"):
        described("objective", {"name": f"{parts}:HalfObjective"})
    with pytest.raises(UserError, match="their_parts:HalfChats has no items, missing, open"):
        described("data", {"name": "conversations", "sources": [{"name": f"{parts}:HalfChats"}]})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("function", "their_parts:function is not a subclass of"),
        ("Bare", "their_parts:Bare is not a subclass of"),
        ("HalfFormat", "their_parts:HalfFormat has no read, write, which every Format has; add it"),
    ],
)
def test_a_class_of_another_kind_is_refused(parts: str, part: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_format(f"{parts}:{part}", "--format")
    with pytest.raises(
        UserError, match=r"model\.family: .* is not a subclass of omnitune\.families\.base\.Family"
    ):
        resolve(f"{parts}:{part}")


def test_a_message_names_the_option_as_the_command_line_spells_it() -> None:
    assert in_words("media.depth_map") == "--media depth_map"
    assert in_words("last_images") == "--last-image"
    assert in_words("max_tokens: give images a_b") == "--max-tokens: give images a_b"
    assert in_words("steps must be 1 or more, of last_images") == "--steps must be 1 or more, of last_images"


def test_options_that_contradict_each_other_are_refused() -> None:
    for wrong in (SampleRequest, EvaluateRequest):
        with pytest.raises(
            UserError, match="--base: is before training, not of checkpoint 3; give one of both"
        ):
            wrong(Path("runs/run"), base=True, checkpoint=3)
    with pytest.raises(UserError, match="--merged: is not --format peft; give one of both"):
        ExportRequest(Path("runs/run"), format="peft", merged=True)
