"""Options of other packages: found by name, held against what is asked of them."""

import sys
from pathlib import Path

import pytest

from omnitune import load_run
from omnitune.config.run import Run
from omnitune.errors import UserError

PARTS = """
from omnitune import Condition, option


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
        ("conditions", {"name": "their_parts:Idle"}, "around, before, deterministic, exports"),
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
