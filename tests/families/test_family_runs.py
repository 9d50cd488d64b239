"""Whole runs of every family: they learn, they go on bit for bit, and ranks learn what one process does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run as run_command
from recorded import Case, cases, certain_posteriors, run_of
from safetensors.torch import load_file

from omnitune import config
from omnitune.export.weights import export
from omnitune.objectives.held_out import Step, held_out_loss
from omnitune.resolve import resolve_run
from omnitune.testing import runs
from omnitune.testing.training import start_training
from omnitune.trainer import Trainer

pytestmark = pytest.mark.slow
EVERY = pytest.mark.parametrize("case", list(cases()), ids=str)
Model = Callable[[Case], Path]
STEPS = 300
THREE = ("rocket", "a cat plays with a ball of wool", "two boats on a lake")


def learn(case: Case, model: Path, folder: Path, **keys: Any) -> tuple[list[float], Trainer]:
    """Train on three clips; their loss at fixed noise before and after, and where every answer is 0."""

    keys = {"schedule": {"steps": STEPS}, "optimizer": {"name": "adamw", "lr": 5e-3}, **keys}
    run = config.validate(config.read(run_of(case, model, folder, captions=THREE, **keys)))
    ready = start_training(run, folder)
    trainer, family = ready.trainer, ready.family
    step = Step(family, run.objective, run.conditions, trainer.stages, trainer.batches, ready.mesh.device)
    losses = [held_out_loss(step).mean]
    for batches in trainer.read():
        trainer.train_step(batches)
        trainer.step += 1
    losses.append(held_out_loss(step).mean)
    with pytest.MonkeyPatch.context() as patch:
        for core in family.cores:
            forward = family.components[core].forward
            patch.setattr(
                family.components[core],
                "forward",
                lambda *a, f=forward, **k: (torch.zeros_like(f(*a, **k)[0]),),
            )
        losses.append(held_out_loss(step).mean)
    return losses, trainer


def nothing(forward: Any) -> Any:
    """A forward that answers 0."""
    return lambda *args, **kwargs: (torch.zeros_like(forward(*args, **kwargs)[0]),)


@EVERY
def test_full_fine_tuning_and_then_an_adapter_learn_three_clips(
    case: Case, model: Model, tmp_path: Path
) -> None:
    with certain_posteriors(size=3.0):
        (before, after, zero), _ = learn(case, model(case), tmp_path / "full", trainable="full")
        assert after < 0.8 * min(before, zero)
        _, trainer = learn(case, model(case), tmp_path / "base", trainable="full", seed=20, top=64)
        run = config.validate(config.read(tmp_path / "base" / "run.yaml"))
        export(trainer.family, resolve_run(run).claims, trainer.mesh, tmp_path / "weights")
        started = {
            "init_from": str(tmp_path / "weights"),
            "trainable": [{"params": [f"{core}.*" for core in trainer.family.cores], "lora": {"rank": 16}}],
            "optimizer": {"name": "adamw", "lr": 1e-2},
        }
        (first, last, _), _ = learn(case, model(case), tmp_path / "lora", **started)
    print(f"{case}: full {before:.3f} -> {after:.3f}, of zeros {zero:.3f}; adapter {first:.3f} -> {last:.3f}")
    assert last < 0.8 * first


@EVERY
def test_a_stopped_run_goes_on_bit_for_bit(case: Case, model: Model, tmp_path: Path) -> None:
    keys = {"trainable": {"lora": {"rank": 2}}, "certain": False}
    found = []
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        file = run_of(case, model(case), tmp_path / name, **keys)
        for number in steps:
            ended = run_command("train", file, f"schedule.steps={number}", cwd=tmp_path / name)
            assert ended.code == 0, ended.err
        found.append(tmp_path / name / "runs" / "run")
    whole, parts = (runs.metrics(folder) for folder in found)
    assert whole == parts
    files = [sorted((folder / "weights").rglob("*.safetensors")) for folder in found]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    for one, other in zip(*files, strict=True):
        before, after = load_file(one), load_file(other)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replicas_and_shards_learn_what_one_process_learns(
    case: Case, model: Model, tmp_path: Path, dtype: str
) -> None:
    losses = {}
    # Rounding to bfloat16 grows with the rate; what an idle expert does shows at a high one alone.
    rate = 1e-2 if dtype == "float32" or "a14b" in case.variant else 1e-4
    for name, ranks, words in (
        ("one", 1, []), ("replicas", 2, ["parallel.replicate=2"]), ("shards", 2, ["parallel.shard=2"]),
    ):  # fmt: skip
        file = run_of(
            case, model(case), tmp_path / name, trainable="full", optimizer={"name": "adamw", "lr": rate},
            **({"objective": {"name": "flow_matching", "shift": 7}} if "a14b" in case.variant else {}),
        )  # fmt: skip
        more = [f"model.dtype={dtype}", "schedule.steps=5", *words]
        ended = run_command("train", file, *more, cwd=tmp_path / name, ranks=ranks)
        assert ended.code == 0, ended.err
        losses[name] = [record["loss"] for record in runs.metrics(tmp_path / name / "runs" / "run")]
    close = 1e-5 if dtype == "float32" else 1e-3
    for name in ("replicas", "shards"):
        assert losses[name] == pytest.approx(losses["one"], rel=close)
