"""Hardware is not a hyperparameter: any number of processes and micro-batches learns the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run

from omnitune import checkpoint, config
from omnitune.data.order import Order
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.parallel.state import load_whole
from omnitune.random import Draw
from omnitune.resolve import resolve_run
from omnitune.testing.runs import ended, metrics, small_run, start, write_run

LORA: Any = [{"params": "transformer.blocks.*.attn*", "lr": 1e-3, "lora": {"rank": 4, "alpha": 10}}]
FULL: Any = [{"params": "transformer", "lr": 1e-3}]
DROPOUT: Any = [{"name": "caption_dropout", "probability": 0.5}]
# Full training divides by small second moments: an epsilon well above rounding keeps updates comparable.
OPTIMIZER: Any = {"name": "adamw", "eps": 1e-5}


@pytest.fixture(scope="module")
def runs(tiny_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lora.yaml and full.yaml, five steps each, and the runs of them."""
    folder = tmp_path_factory.mktemp("processes")
    for name, rules in (("lora", LORA), ("full", FULL)):
        keys = {"trainable": rules, "conditions": DROPOUT, "optimizer": OPTIMIZER, "schedule": {"steps": 5}}
        write_run(folder / f"{name}.yaml", small_run(tiny_wan, cache, **keys))
        train(folder, name, f"{name}-1")
    return folder


def train(folder: Path, kind: str, name: str, *words: str, ranks: int = 1) -> Path:
    """Train a run under a name; its folder."""
    done = run("train", f"{kind}.yaml", f"name={name}", *words, cwd=folder, ranks=ranks)
    assert done.code == 0, done.err
    return folder / "runs" / name


def learned(folder: Path) -> dict[str, torch.Tensor]:
    """What the newest checkpoint of a run holds of its weights."""
    saved, notes = checkpoint.newest(folder / "checkpoints")
    assert saved is not None, notes
    tensors = load_whole(saved.tensors, Mesh(Parallel()))
    return {name: tensor for name, tensor in tensors.items() if name.startswith("weights/")}


def assert_equal_runs(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Same samples, same draws, and the same losses, gradients and weights up to rounding."""
    assert (one / "draws.jsonl").read_bytes() == (other / "draws.jsonl").read_bytes()
    assert_equal_losses(one, other, tolerance)
    mine, theirs = learned(one), learned(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=tolerance, msg=name)


def assert_equal_losses(one: Path, other: Path, tolerance: float) -> None:
    mine, theirs = metrics(one), metrics(other)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        assert (a["step"], a["samples"], a["epoch"], a["lr"]) == (
            b["step"],
            b["samples"],
            b["epoch"],
            b["lr"],
        )
        for name in ("loss", "grad_norm", "u"):
            assert abs(a[name] - b[name]) <= tolerance * max(1, abs(a[name])), (
                a["step"],
                name,
                a[name],
                b[name],
            )


def test_both_buckets_and_both_kinds_of_caption_occur_in_the_five_steps(runs: Path) -> None:
    job = resolve_run(config.validate(config.read(runs / "lora.yaml")))
    order = Order(job.index().by_bucket, job.run.data.batch_size, job.run.seed)
    assert {order.buckets[order.turns.turn(step)[0]].frames for step in range(5)} == {1, 9}
    positions = [row.position for step in range(5) for row in order.batch(step)]
    dropout = job.run.conditions[0]
    dropped = [
        dropout.inputs({"caption": "a fox"}, Draw(job.run.seed, [p]))["caption"] == "" for p in positions
    ]
    assert set(dropped) == {True, False}


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("name", "words", "ranks"),
    [
        ("four-micro-batches", ["parallel.micro_batch_size=1"], 1),
        ("two-replicas", ["parallel.replicate=2"], 2),
        ("two-shards", [], 2),
    ],
)
def test_one_process_learns_what_others_learn(
    runs: Path, kind: str, name: str, words: list[str], ranks: int
) -> None:
    assert_equal_runs(runs / "runs" / f"{kind}-1", train(runs, kind, f"{kind}-{name}", *words, ranks=ranks))


def test_nproc_starts_processes_that_learn_what_one_learns(runs: Path) -> None:
    done = ended(start("train", "lora.yaml", "name=nproc", "--nproc", "2", cwd=runs))
    assert done.code == 0, done.err
    assert json.loads((runs / "runs/nproc/manifest.json").read_text())["ranks"] == 2
    assert_equal_runs(runs / "runs/lora-1", runs / "runs/nproc")


def test_a_batch_that_does_not_divide_is_learned_alike(runs: Path) -> None:
    one = train(runs, "lora", "three-1", "data.batch_size=3")
    two = train(runs, "lora", "three-2", "data.batch_size=3", ranks=2)
    assert_equal_runs(one, two)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on_from_a_checkpoint(runs: Path, before: int, after: int) -> None:
    train(runs, "full", f"elastic-{before}", "schedule.steps=2", ranks=before)
    assert_equal_runs(runs / "runs/full-1", train(runs, "full", f"elastic-{before}", ranks=after))


def test_two_processes_compute_in_bfloat16_as_one_does(runs: Path) -> None:
    one = train(runs, "lora", "half-1", "model.dtype=bfloat16")
    two = train(runs, "lora", "half-2", "model.dtype=bfloat16", ranks=2)
    assert (one / "draws.jsonl").read_bytes() == (two / "draws.jsonl").read_bytes()
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-3 * abs(a["loss"]), (a["step"], a["loss"], b["loss"])
