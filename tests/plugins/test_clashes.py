"""Parts of other packages that would take each other's place, or the run's own."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from omnitune import load_run
from omnitune.batch import LossSum
from omnitune.callbacks.base import Callback, Record, TrainerView, check_metrics
from omnitune.commands.train import train
from omnitune.errors import UserError
from omnitune.resolve import resolve_run
from omnitune.testing.runs import metrics, small_run

PARTS = """
import torch

from omnitune import Condition, option
from omnitune.optim import AdamW
from omnitune.stages import Stage


class Staged(Condition):
    stage = "control"

    def stages(self, family):
        def encode(batch, draw):
            return {"brightness": torch.full((len(batch["pixels"]),), self.level)}

        return [Stage(self.stage, (), ("pixels",), ("brightness",), encode)]

    def before(self, family, noisy, batch, draw):
        assert batch["brightness"].tolist() == [self.level] * len(noisy.u)
        return noisy


@option
class One(Staged):
    name: str
    level: float = 1.0


@option
class Two(Staged):
    name: str
    level: float = 2.0


@option
class AsText(Staged):
    name: str
    level: float = 3.0
    stage = "text"


@option
class Later(Staged):
    name: str
    level: float = 4.0
    stage = "later"


@option
class Loose:
    name: str
    lr: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0

    def build(self, groups):
        return torch.optim.SGD(groups)
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "clashing_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("clashing_parts", None)
    return "clashing_parts"


def described(model: Path, cache: Path | None, name: str = "run", **keys: Any) -> Any:
    return load_run({**small_run(model, cache, **{"schedule": {"steps": 2}, **keys}), "name": name})


def test_conditions_with_stages_of_one_name_share_no_cache(
    parts: str, tiny_wan: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for name, condition in {
        "one": {"name": f"{parts}:One"},
        "two": {"name": f"{parts}:Two"},
        "other": {"name": f"{parts}:One", "level": 1.5},
    }.items():  # a level that is not its own would fail in the step
        train(described(tiny_wan, store, name, conditions=[condition]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["One", "Two"], "two stages are called control, which is their place in the cache; rename"),
        (["AsText"], "two stages are called text, which is their place in the cache; rename"),
        (["One", "Later"], "stage later gives brightness, which an earlier stage gives already"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_stages_that_hide_others_are_refused(
    parts: str, tiny_wan: Path, tmp_path: Path, names: list[str], message: str, cached: bool
) -> None:
    conditions = [{"name": f"{parts}:{name}"} for name in names]
    run = described(tiny_wan, tmp_path / "store" if cached else None, conditions=conditions)
    with pytest.raises(UserError, match=message):
        resolve_run(run)


class Keeps(Callback):
    def __init__(self, key: str):
        self.kept = {key: torch.zeros(1)}

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.kept


@pytest.mark.parametrize(
    "callbacks",
    [
        [Keeps("mine"), Keeps("mine")],
        [Keeps("weights/transformer.blocks.0.attn1.to_q.lora_A.default.weight")],
        [Keeps("optimizer/step")],
        [Keeps("carried/x")],
    ],
)
def test_tensors_that_stand_in_the_checkpoint_already_are_refused_before_the_first_step(
    parts: str, tiny_wan: Path, cache: Path, callbacks: list[Callback]
) -> None:
    run = described(tiny_wan, cache)
    key = next(iter(callbacks[-1].tensors()))
    with pytest.raises(UserError, match=rf"Keeps(#1)?: tensors\(\) gives {key}, which the checkpoint has"):
        train(run, *callbacks)
    assert not Path("runs/run/checkpoints").exists()
    assert not Path("runs/run/metrics.jsonl").exists() or not metrics(Path("runs/run"))


@pytest.mark.parametrize("name", sorted(Record.__dataclass_fields__))
def test_no_metric_of_an_objective_takes_the_place_of_a_records_number(name: str) -> None:
    with pytest.raises(UserError, match=f"its metric {name} is called as a field of every record"):
        check_metrics({"u": 0, name: 1})
    check_metrics({"u": 0})


def test_the_trainer_asks_for_it(
    parts: str, tiny_wan: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omnitune.objectives.diffusion import FlowMatching

    published = FlowMatching.loss

    def loss(*args: Any) -> LossSum:
        found = published(*args)
        found.metrics["step"] = torch.tensor(3.5)
        return found

    monkeypatch.setattr(FlowMatching, "loss", loss)
    with pytest.raises(UserError, match="its metric step is called as a field"):
        train(described(tiny_wan, cache))


@pytest.mark.parametrize(("key", "value"), [("max_grad_norm", -1.0), ("max_grad_norm", 0.0), ("lr", -1.0)])
def test_optimizers_of_other_packages_are_held_to_the_same_ranges(
    parts: str, tiny_wan: Path, cache: Path, key: str, value: float
) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.{key}: must be .*{value}"):
        described(tiny_wan, cache, optimizer={"name": f"{parts}:Loose", key: value})


class EndsAtOnce(Callback):
    def on_start(self, trainer: TrainerView) -> None:
        trainer.finish_wish = True


def test_no_wish_ends_a_phase_that_is_not_the_last(parts: str, tiny_wan: Path, cache: Path) -> None:
    stated = small_run(tiny_wan, cache)
    phase = {"trainable": stated.pop("trainable"), "schedule": {"steps": 2}}
    del stated["schedule"]
    train(load_run({**stated, "phases": [phase, phase], "name": "run"}), EndsAtOnce())
    assert [record["step"] for record in metrics(Path("runs/run"))] == [1, 2]


def test_a_thread_trains(parts: str, tiny_wan: Path, cache: Path) -> None:
    run, found = described(tiny_wan, cache), []
    thread = threading.Thread(target=lambda: found.append(train(run)))
    thread.start()
    thread.join()
    assert len(metrics(found[0].folder)) == 2
