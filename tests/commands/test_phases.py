"""A run whose rules change: what each phase trains, what it leaves alone, where it goes on after a stop."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnitune import checkpoint, config
from omnitune.cli import main
from omnitune.commands.train import train_on
from omnitune.errors import Stopped
from omnitune.parallel.mesh import Mesh
from omnitune.resolve import resolve_phases
from omnitune.testing.runs import small_run, write_run

LORA = {"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": {"rank": 4}}
FULL = {"params": "transformer.blocks.1.ffn", "lr": 1e-2}
OTHER = {"params": "transformer.blocks.0.ffn", "lr": 1e-3}
PHASES = [
    {"trainable": [FULL], "schedule": {"steps": 2}},
    {"trainable": [LORA, OTHER], "schedule": {"steps": 3, "warmup": 2}, "optimizer": {"weight_decay": 0}},
    {"trainable": [FULL], "schedule": {"steps": 2}},
]


@pytest.fixture(scope="module")
def home(tiny_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the YAML of a run of three phases, and the run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("phased")
    described = small_run(tiny_wan, cache, phases=PHASES, checkpoint={"every": 1, "keep": None})
    for key in ("trainable", "schedule"):
        del described[key]
    with chdir(folder):
        train(write_run(folder / "phased.yaml", described))
    return folder


@pytest.fixture
def run_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home / "phased.yaml"


@pytest.fixture
def whole(home: Path) -> Path:
    return home / "runs" / "phased"


def train(path: Path, *overrides: str) -> Path:
    run, _ = config.load(path, overrides)
    return train_on(run, Mesh(run.parallel))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    from omnitune.parallel.mesh import Parallel
    from omnitune.parallel.state import load_whole

    (saved,) = [s for s in checkpoint.list_saved(folder / "checkpoints") if s.step == step]
    return load_whole(saved.tensors, Mesh(Parallel()))


def test_each_phase_trains_what_it_names_and_keeps_what_trained_before(whole: Path) -> None:
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["lr"] for row in rows] == [
        {"0": 1e-2}, {"0": 1e-2},
        {"0": 5e-3, "1": 5e-4}, {"0": 1e-2, "1": 1e-3}, {"0": 1e-2, "1": 1e-3},
        {"0": 1e-2}, {"0": 1e-2},
    ]  # fmt: skip
    at = {step: tensors(whole, step) for step in (2, 5, 7)}
    full = "transformer.blocks.1.ffn.net.0.proj.weight"
    other = "transformer.blocks.0.ffn.net.0.proj.weight"
    adapter = "transformer.blocks.0.attn1.to_q.lora_B.default.weight"
    assert torch.equal(at[2][f"weights/{full}"], at[5][f"carried/{full}"])
    assert not torch.equal(at[5][f"carried/{full}"], at[7][f"weights/{full}"])
    assert torch.equal(at[5][f"weights/{other}"], at[7][f"carried/{other}"])
    assert torch.equal(at[5][f"weights/{adapter}"], at[7][f"carried/{adapter}"])
    assert at[7][f"carried/{adapter}"].abs().max() > 0
    # Everything that ever trained is exported.
    lora = load_file(whole / "weights" / "pytorch_lora_weights.safetensors")
    assert torch.equal(lora["transformer.blocks.0.attn1.to_q.lora_B.weight"], at[7][f"carried/{adapter}"])
    (weights,) = (whole / "weights" / "transformer").glob("*.safetensors")
    written = load_file(weights)
    assert torch.equal(written["blocks.1.ffn.net.0.proj.weight"], at[7][f"weights/{full}"])
    assert torch.equal(written["blocks.0.ffn.net.0.proj.weight"], at[7][f"carried/{other}"])


@pytest.mark.parametrize(
    "stop", [2, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 5, 6))]
)
def test_a_stop_anywhere_goes_on_bit_for_bit(
    run_file: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    real = checkpoint.save

    def save(folder: Path, step: int, *rest: Any) -> Any:
        found = real(folder, step, *rest)
        if step == stop:  # as a kill would, after a complete checkpoint
            raise Stopped("killed")
        return found

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Stopped):
        train(run_file, f"name=again-{stop}")
    monkeypatch.setattr(checkpoint, "save", real)
    again = train(run_file, f"name=again-{stop}")
    assert [row["loss"] for row in metrics(again)] == [row["loss"] for row in metrics(whole)]
    mine, theirs = tensors(again, 7), tensors(whole, 7)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_finished_run_says_so(run_file: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "metrics.jsonl").read_text()
    train(run_file)
    assert "runs/phased is trained to step 7 already\n" in capsys.readouterr().err
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_stage_that_an_earlier_phase_trained_is_not_cached_later(run_file: Path) -> None:
    phases = [
        {"trainable": [{"params": "text_encoder", "lr": 1e-4}], "schedule": {"steps": 1}},
        {"trainable": [FULL], "schedule": {"steps": 1}},
    ]
    run, _ = config.load(run_file, [f"phases={json.dumps(phases)}"])
    first, second = resolve_phases(run)
    assert [s.name for s in first.cached] == [s.name for s in second.cached] == ["moments"]
    assert "text" in [s.name for s in first.live]
    assert "text" in [s.name for s in second.live]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainable=full", "trainable: stands beside phases, which have their own; move it into them"),
        ("freeze_llm=true", "freeze_llm: stands beside phases, which have their own; move it into them"),
        ("schedule.steps=5", "schedule: stands beside phases, which have their own; move it into them"),
        ("ema={decay: 0.9}", "ema: an average over phases that train other parts is none; leave it out"),
        ("phases=[]", "trainable: is missing; give rules, full, {lora: {}}, or phases"),
        (
            "phases.2.trainable=[{params: transformer.blocks.*.attn*, lora: {rank: 2}}]",
            "trainable.0.lora: transformer.blocks.0.attn1.to_q has an adapter of an earlier phase with "
            "Lora(rank=4, alpha=None, dropout=0.0); state the same",
        ),
    ],
)
def test_what_cannot_be(
    run_file: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["plan", str(run_file), override]) == 2
    assert message in capsys.readouterr().err


def test_plan_tells_of_each_phase(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(run_file)]) == 0
    told = capsys.readouterr().out
    for words in ("phase of steps 1 to 2", "phase of steps 3 to 5", "phase of steps 6 to 7", "7 steps of 4"):
        assert words in told
