"""A callback of another package: stated in YAML, or given to `train`."""

import dataclasses
import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import early_stop
import mid_training
import pytest
import torch
from documented import shows
from forked import run
from safetensors.torch import load_file

from omnitune import cli, config
from omnitune.callbacks import record
from omnitune.callbacks.base import Callback, Record, Samples, checked_state
from omnitune.checkpoint import newest
from omnitune.commands.train import train
from omnitune.errors import UserError
from omnitune.testing.runs import metrics, small_run, write_run

STATED = {"name": "early_stop:EarlyStop"}


@pytest.fixture
def home(tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run.yaml that states the callback."""
    monkeypatch.setattr(record, "HOST_READ_SECONDS", 0.0)
    write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache, callbacks=[STATED]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    return tmp_path


def started(*words: str) -> int:
    return cli.main(["train", "run.yaml", *words])


def kept(name: str) -> dict[str, Any]:
    """What the newest checkpoint of a run has of its callbacks."""
    saved, _ = newest(Path("runs") / name / "checkpoints")
    assert saved is not None
    found: dict[str, Any] = saved.state().get("callbacks", {})
    return found


def test_the_guide_shows_what_is_tested() -> None:
    assert shows("callbacks.md", early_stop)
    assert shows("callbacks.md", mid_training)


def test_its_state_survives_a_resume_bit_for_bit(home: Path) -> None:
    assert started("name=whole", "schedule.steps=4") == 0
    assert started("name=halves", "schedule.steps=2") == 0
    assert started("name=halves", "schedule.steps=4") == 0
    (state,) = kept("whole").values()
    assert kept("halves") == kept("whole")
    assert state["best"] == min(row["loss"] for row in metrics(home / "runs/whole"))
    assert Path("runs/halves/hardest.json").read_text() == Path("runs/whole/hardest.json").read_text()
    assert len(state["losses"]) > 4


def test_it_ends_a_run_as_finished_and_a_second_start_goes_no_further(home: Path) -> None:
    words = ["name=ended", "schedule.steps=60", "callbacks.0.patience=2"]
    assert started(*words) == 0
    losses = [row["loss"] for row in metrics(home / "runs/ended")]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 60
    weights = Path("runs/ended/weights/pytorch_lora_weights.safetensors")
    first = load_file(weights)
    assert started(*words) == 0
    assert len(metrics(home / "runs/ended")) == len(losses)
    again = load_file(weights)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_two_processes_give_it_the_rows_of_one(home: Path) -> None:
    assert started("name=one") == 0
    done = run("train", "run.yaml", "name=two", cwd=home, ranks=2)
    assert done.code == 0, done.err
    (one,), (two,) = kept("one").values(), kept("two").values()
    assert one["losses"].keys() == two["losses"].keys()
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    ended = run(
        "train", "run.yaml", "name=ended", "schedule.steps=60", "callbacks.0.patience=2", cwd=home, ranks=2
    )
    assert ended.code == 0, ended.err
    assert len(metrics(home / "runs/ended")) < 60
    assert Path("runs/ended/weights").exists()


def test_an_unknown_callback_is_a_mistake_of_the_user(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert started("callbacks=[{name: early_stop:Gone}]") == 2
    assert "callbacks.0: 'early_stop:Gone' cannot be imported" in capsys.readouterr().err
    assert started("callbacks=[{name: gone}]") == 2
    assert "callbacks.0.name is 'gone'; choose from package.module:Class" in capsys.readouterr().err


class Live(Callback):
    """Keeps all that it is told."""

    wants_rows = True

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.samples: list[Samples] = []

    def on_record(self, record: Record) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.loss = 0.0  # type: ignore[misc]
        record.as_json()["lr"].clear()  # a copy
        self.records.append(record)

    def on_samples(self, samples: Samples) -> None:
        self.samples.append(samples)


def test_a_live_one_gets_every_record_and_all_samples(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    validation = {"every": 2, "prompts": ["a fox"], "size": "32x32", "steps": 1}
    described = small_run(tiny_wan, cache, validation=validation)
    stated = config.load(write_run(tmp_path / "run.yaml", described))[0]
    live = Live()
    with chdir(tmp_path):
        result = train(stated, live)
        rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        assert kept("run") == {}
    assert [one.as_json() for one in live.records] == rows
    assert [one.step for one in live.samples] == [0, 2, 3]
    assert all(len(one.made) == len(one.requests) == len(one.files) == 1 for one in live.samples)
    for one in live.records:
        assert one.rows is not None
        assert one.rows.levels is not None
        assert one.draws is not None
        assert list(one.rows.ids) == list(one.draws["id"])
        assert sum(one.rows.losses) / 4 == pytest.approx(one.loss, rel=1e-5)
        assert sum(one.rows.levels) / 4 == pytest.approx(one.means["u"], rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_held_out_loss_in_mid_training_changes_nothing(home: Path, tiny_wan: Path, ranks: int) -> None:
    stated = {"trainable": "full", "ema": {"decay": 0.5}, "optimizer": {"lr": 1e-3}}
    described = small_run(
        tiny_wan, home / "cache", **stated, callbacks=[{"name": "mid_training:MidTraining"}]
    )
    write_run(home / "run.yaml", described)
    for words in (["name=with"], ["name=without", "callbacks=[]"]):
        done = run("train", "run.yaml", *words, cwd=home, ranks=ranks)
        assert done.code == 0, done.err
    assert metrics(home / "runs/with") == metrics(home / "runs/without")
    rows = [json.loads(line) for line in (home / "runs/with/held_out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("state", [{"seen": {1, 2}}, {1: "one"}, {"pair": (1, 2)}])
def test_a_state_that_json_does_not_give_back_is_refused(state: Any) -> None:
    class Forgetful(Callback):
        def state(self) -> Any:
            return state

    with pytest.raises(UserError, match=r"callbacks: mine: state\(\) gives .* tensors in tensors\(\)"):
        checked_state("mine", Forgetful())
