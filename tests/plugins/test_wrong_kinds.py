"""Parts of other packages that are not what their kind is: each is named, none is a traceback."""

import importlib
import re
import sys
from collections.abc import Callable as Function
from pathlib import Path
from typing import Any

import pytest
import torch

from omnitune import EvaluateRequest, ExportRequest, SampleRequest, cli, load_run
from omnitune.callbacks.base import Callback, TrainerView, checked_state
from omnitune.commands.export import export_weights
from omnitune.commands.sample import sample
from omnitune.commands.train import train
from omnitune.data.captions.item import Item
from omnitune.data.captions.scan import scan
from omnitune.data.encode import all_variants
from omnitune.errors import Mistakes, UserError
from omnitune.evaluate.data import held_out
from omnitune.export import find_format
from omnitune.files import File, Hashes
from omnitune.options import import_class, plain
from omnitune.resolve import resolve_run
from omnitune.run_folder import find_checkpoint, locked
from omnitune.sampling import Medium, Validation, check_files
from omnitune.testing.runs import metrics, small_run

PARTS = """
import torch

from omnitune import Callback, Condition, option
from omnitune.export.peft import Peft
from omnitune.stages import Stage


@option
class Asks(Condition):
    name: str
    what: str

    def prepare(self, family):
        if self.what == "widen":
            family.widen(-3)
        if self.what == "change":
            family.change("nope", print)

    def media(self, family):
        return None if self.what == "media" else ()

    def stages(self, family):
        return ["text"] if self.what == "stages" else []

    def exports(self, family):
        return {"x": torch.zeros(1)} if self.what == "exports" else {}

    def variants(self, inputs):
        return []


@option
class Encodes(Condition):
    name: str
    needs: str = "pixels"
    gives: str = "level"

    def stages(self, family):
        def encode(batch, draw):
            return None if self.gives == "none" else {"level": torch.full((len(batch["pixels"]),), 1.0)}

        return [Stage("level", (), (self.needs,), (self.gives,), encode)]

    def before(self, family, noisy, batch, draw):
        batch["seen"] = float(batch["level"][0])
        print("level", batch["seen"])
        return noisy


@option
class Empty(Condition):
    name: str

    def beforehand(self, family, noisy, batch, draw):
        raise AssertionError


@option
class Bare:
    name: str


@option
class WithSet(Condition):
    name: str
    kinds: frozenset[int] = frozenset({1})


@option
class Loose:
    name: str
    lr: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    kind: str = "list"

    def build(self, groups):
        if self.kind == "list":
            return [groups]
        return torch.optim.SGD([{"params": p} for group in groups for p in group["params"]], lr=0.1)


@option
class Built:
    name: str

    def build(self):
        return "a callback"


class Outside(Peft):
    name = "../outside"


class Vague(Peft):
    name = "vague"
    tolerance = float("inf")
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "wrong_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("wrong_parts", None)
    return "wrong_parts"


def described(model: Path, cache: Path | None, **keys: Any) -> Any:
    return load_run({**small_run(model, cache, **{"schedule": {"steps": 2}, **keys}), "name": "run"})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("widen", "widen(-3, 0) adds no channels"),
        ("change", "has no nope to change; there are"),
        ("media", "media() of wrong_parts:Asks gives None, not a list of Medium"),
        ("stages", "stages() of wrong_parts:Asks gives ['text'], not a list of Stage"),
        ("exports", "exports() gives what JSON cannot spell"),
    ],
)
def test_conditions(parts: str, tiny_wan: Path, what: str, message: str) -> None:
    run = described(tiny_wan, None, conditions=[{"name": f"{parts}:Asks", "what": what}])
    with pytest.raises(UserError, match=re.escape(message)):
        resolve_run(run)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"name": "wrong_parts:Empty"}, "wrong_parts:Empty overrides no method of Condition"),
        ({"name": "wrong_parts:Encodes", "needs": "sound"}, "stage level needs sound, which neither samples"),
    ],
)
def test_conditions_that_cannot_act(
    parts: str, tiny_wan: Path, condition: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        resolve_run(described(tiny_wan, None, conditions=[condition]))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("gives", "told"),
    [("other", "states that it gives .* and gives level"), ("none", "gives NoneType, not a dict")],
)
def test_stages_that_give_something_else(
    parts: str, tiny_wan: Path, tmp_path: Path, cached: bool, gives: str, told: str
) -> None:
    conditions = [{"name": f"{parts}:Encodes", "gives": gives}]
    run = described(tiny_wan, tmp_path / "store" if cached else None, conditions=conditions)
    with pytest.raises(UserError, match=f"stage level {told}"):
        train(run)


def test_a_condition_whose_code_changes_is_encoded_anew(
    parts: str, tiny_wan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for level in ("1.0", "2.0"):
        (tmp_path / "wrong_parts.py").write_text(PARTS.replace("1.0)}", f"{level})}}"))
        sys.modules.pop("wrong_parts", None)
        importlib.invalidate_caches()
        stated = {"name": level, "conditions": [{"name": f"{parts}:Encodes"}]}
        train(load_run({**small_run(tiny_wan, tmp_path / "store", schedule={"steps": 1}), **stated}))
        assert f"level {level}" in capfd.readouterr().out


def test_a_condition_without_variants(parts: str, tiny_wan: Path) -> None:
    run = described(tiny_wan, None, conditions=[{"name": f"{parts}:Asks", "what": "variants"}])
    with pytest.raises(UserError, match=r"variants\(\) of wrong_parts:Asks gives none"):
        all_variants(run.conditions, {"caption": "a"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"conditions": [{"name": "wrong_parts:Bare"}]},
            "wrong_parts:Bare is not a subclass of omnitune.conditions.base.Condition",
        ),
        ({"conditions": [{"name": "wrong_parts:WithSet"}]}, "a field that YAML cannot spell"),
        ({"callbacks": [{"name": "wrong_parts:Bare"}]}, "wrong_parts:Bare has no build"),
    ],
)
def test_options(parts: str, tiny_wan: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        described(tiny_wan, None, **keys)


@pytest.mark.parametrize("kind", ["list", "SGD"])
def test_optimizers(parts: str, tiny_wan: Path, cache: Path, kind: str) -> None:
    run = described(tiny_wan, cache, optimizer={"name": f"{parts}:Loose", "kind": kind})
    with pytest.raises(
        UserError, match=rf"build\(\) of Loose gives {kind}, not a torch.optim.Optimizer of the"
    ):
        train(run)


def test_callbacks(parts: str, tiny_wan: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"'a callback' is no omnitune.Callback; derive"):
        train(described(tiny_wan, cache, callbacks=[{"name": f"{parts}:Built"}]))
    with pytest.raises(UserError, match=r"print.* is no omnitune.Callback"):
        train(described(tiny_wan, cache), print)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["1 +", "name_that_is_not_there", "raise ValueError('x')", "1 + 'x'"])
def test_modules_that_do_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_module", None)
    with pytest.raises(ValueError, match="'broken_module:X' cannot be imported: "):
        import_class("broken_module:X")


@pytest.mark.parametrize(("cls", "told"), [("Outside", "name = '../outside'"), ("Vague", "tolerance = inf")])
def test_formats(parts: str, cls: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        find_format(f"{parts}:{cls}", "--format")


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "a b"}, {"name": "control", "sampling": "always"}])
def test_media(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="a medium is called"):
        Medium(**fields)


def _looped() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["me"] = found
    return found


@pytest.mark.parametrize("state", [None, 1, "text", ["ab", 1], _looped(), {"x": {1, 2}}, {"x": float("nan")}])
def test_states(state: Any) -> None:
    callback = Callback()
    callback.state = lambda: state  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"mine: state\(\) gives "):
        checked_state("mine", callback)


class Keeps(Callback):
    def __init__(self, number: int = 0, width: int = 1):
        self.number, self.kept = number, torch.zeros(width)

    def state(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state(self, state: Any) -> None:
        self.number = state["number"]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"mine/{self.number}": self.kept}


def test_no_callback_takes_up_the_state_of_another(parts: str, tiny_wan: Path, cache: Path) -> None:
    run = described(tiny_wan, cache)
    train(run, Keeps(1), Keeps(2))
    with pytest.raises(UserError, match=r"has the state of more than one .*Keeps and the run has fewer"):
        train(described(tiny_wan, cache, schedule={"steps": 3}), Keeps(1))


def test_tensors_of_another_shape_are_named(parts: str, tiny_wan: Path, cache: Path) -> None:
    train(described(tiny_wan, cache), Keeps(1))
    with pytest.raises(UserError, match=r"mine/1 is \(2,\) here and \(1,\) in the checkpoint"):
        train(described(tiny_wan, cache, schedule={"steps": 3}), Keeps(1, width=2))
    with pytest.raises(UserError, match=r"mine/5 is \(1,\) here and missing in the checkpoint"):
        train(described(tiny_wan, cache, schedule={"steps": 3}), Keeps(5))


class EndsAtOnce(Callback):
    def on_start(self, trainer: TrainerView) -> None:
        trainer.finish_wish = True


def test_a_run_that_ends_before_its_first_step_has_a_checkpoint(
    parts: str, tiny_wan: Path, cache: Path
) -> None:
    folder = train(described(tiny_wan, cache), EndsAtOnce()).folder
    assert find_checkpoint(folder, None).step == 0
    train(described(tiny_wan, cache))
    assert [record["step"] for record in metrics(folder)] == [1, 2]


def test_a_run_goes_on_without_a_callback_whose_file_is_gone(
    parts: str, tiny_wan: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "short_lived.py").write_text(PARTS.replace('return "a callback"', "return Callback()"))
    folder = train(described(tiny_wan, cache, callbacks=[{"name": "short_lived:Built"}])).folder
    (tmp_path / "short_lived.py").unlink()
    sys.modules.pop("short_lived")
    train(described(tiny_wan, cache, schedule={"steps": 3}))
    assert len(metrics(folder)) == 3
    assert export_weights(ExportRequest(folder, out=tmp_path / "out")).is_dir()


def test_one_process_does_not_train_a_run_twice(tmp_path: Path) -> None:
    again = locked(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another run trains here"):
        again.__enter__()
    with locked(tmp_path / "run"):
        pass


REQUESTS: list[tuple[Function[[], object], str]] = [
    (lambda: SampleRequest(Path("runs/x"), prompts="abc"), "--prompts: 'abc' is one; give a list, ['abc']"),
    (lambda: SampleRequest(Path("runs/x"), images="a.png"), "--images: 'a.png' is one; give a list"),  # type: ignore[arg-type]
    (
        lambda: SampleRequest(Path("runs/x"), base=True, raw=True),
        "--base: is before training, not of the raw",
    ),
    (lambda: EvaluateRequest(Path("runs/x"), base=True, checkpoint=1), "--base: is before training, not of"),
    (lambda: Validation(seed=2**63), "seed must be from 0"),
]


@pytest.mark.parametrize(("make", "message"), REQUESTS)
def test_requests(make: Function[[], object], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=re.escape(message)):
        make()


def test_paths_may_be_texts() -> None:
    request = SampleRequest("runs/x", out="out")  # type: ignore[arg-type]
    assert (request.folder, request.out, request.size) == (Path("runs/x"), Path("out"), None)
    values = small_run(Path("model"), None)
    assert load_run({**values, "name": "run", "init_from": Path("x")}).init_from == Path("x")


def test_raw_weights_of_a_run_without_an_average(parts: str, tiny_wan: Path, cache: Path) -> None:
    folder = train(described(tiny_wan, cache)).folder
    for refused in (
        lambda: sample(SampleRequest(folder, prompts=["a"], raw=True)),
        lambda: export_weights(ExportRequest(folder, raw=True)),
    ):
        with pytest.raises(UserError, match=r"--raw: .* keeps no average"):
            refused()
    assert cli.main(["evaluate", str(folder), "--metrics", "psnr,psnr", "--data", "x"]) == 2
    assert cli.main(["export", str(folder), "--format", ""]) == 2


def test_init_format_alone(tiny_wan: Path) -> None:
    with pytest.raises(UserError, match="init_format: has no effect without init_from"):
        described(tiny_wan, None, init_format="peft")


class Bad:
    """A source of one picture whose caption is blank."""

    def __init__(self, brings: Any = ()):
        self.brings = brings

    def missing(self, base: Path) -> str | None:
        return "list.csv" if "lost" in self.brings else None

    def open(self, base: Path, file: str) -> File:
        return File(base / file)

    def items(self, base: Path, findings: Any) -> Any:
        yield Item("bad/a.png", "a.png", " ", "bad:1", "image", 8, 8, 1)


def test_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bad:1: the caption of 'a.png' is blank"):
        scan([Bad()], tmp_path, Hashes(tmp_path))  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"list\.csv is not there; bring it"):
        scan([Bad(("lost",))], tmp_path, Hashes(tmp_path))  # type: ignore[list-item]
    with pytest.raises(UserError, match="brings 'control'; give a list of names"):
        scan([Bad("control")], tmp_path, Hashes(tmp_path))  # type: ignore[list-item]


def test_held_out_data_bring_what_the_runs_own_do(tiny_wan: Path, tmp_path: Path) -> None:
    run = described(tiny_wan, None, conditions=[])
    sources = [{"path": str(tmp_path), "media": {"control": "file"}}]
    data = described(tiny_wan, None, data={**plain(run.data), "sources": sources}).data
    (found,) = held_out(data, [Path("other")], None).sources
    assert (found.path, found.media) == (Path("other"), {"control": "file"})


def test_a_file_that_is_no_picture_is_told_before_training(tiny_wan: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    stated = {"prompts": ["a"], "images": [str(tmp_path / "text.png")]}
    mistakes = Mistakes()
    check_files(described(tiny_wan, None, validation=stated).validation, mistakes)
    (told,) = mistakes.errors
    assert "validation.images" in str(told)
    assert "cannot be read as a picture" in str(told)
