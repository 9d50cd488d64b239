"""The same run learns the same, with or without stored towers, in shared rows, on ranks, and after a stop."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run as run_command
from safetensors.torch import load_file
from small_chats import small_chat_run
from torch import Tensor

from omnitune.testing import runs

PROJECTOR_ONLY: dict[str, Any] = {"trainable": "full", "train_mm_proj_only": True}
ALL_OPEN: dict[str, Any] = {
    "trainable": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
}  # fmt: skip
RANKED = [
    pytest.param(
        name,
        opened,
        id=f"{name}-{tower}",
        marks=[] if (name, tower) == ("llava", "live") else pytest.mark.slow,
    )
    for name in ("llava", "qwen3_vl", "idefics3", "mllama")
    for tower, opened in (("live", ALL_OPEN), ("stored", PROJECTOR_ONLY))
]
SMOOTH = {"name": "adamw", "lr": 1e-2, "eps": 1e-2}
"""Does not make steps out of gradients that are rounding noise (those of key biases)."""


def write(
    folder: Path,
    model: Path,
    *,
    pictures: int = 3,
    texts: int = 3,
    data: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Path:
    """Write a run over all items in each step; `keys` replace top-level ones."""
    described = small_chat_run(model, folder, pictures, texts, **keys)
    described["data"].update(data or {})
    return runs.write_run(folder / "run.yaml", described)


def train(file: Path, *words: str, ranks: int = 1) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of each step, and the weights of the end."""
    done = run_command("train", file, *words, cwd=file.parent, ranks=ranks)
    assert done.code == 0, done.err
    folder = file.parent / "runs" / "run"
    weights: dict[str, Tensor] = {}
    for path in sorted((folder / "weights").rglob("*.safetensors")):
        weights |= load_file(path)
    return [record["loss"] for record in runs.metrics(folder)], weights


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "model_type", ["llava", "qwen3_vl", pytest.param("idefics3", marks=pytest.mark.slow)]
)
def test_a_stored_tower_trains_what_a_live_one_does(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    model = tiny_vlm(model_type)
    stored = train(write(tmp_path / "stored", model, **PROJECTOR_ONLY))
    live = train(write(tmp_path / "live", model, data={"cache": None}, **PROJECTOR_ONLY))
    assert len(stored[0]) == 2
    assert stored[0] == pytest.approx(live[0], rel=1e-6)
    assert_close(stored[1], live[1], atol=1e-6)
    base = load_file(model / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], stored[1][name])}
    assert changed
    assert all("projector" in name or "merger" in name or "connector" in name for name in changed)


def test_shared_rows_have_the_loss_of_rows_apart(tiny_vlm: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_vlm("llava")
    apart, _ = train(write(tmp_path / "apart", model, schedule={"steps": 1}, **ALL_OPEN))
    packing = {"packing": True, "max_length": 4096, "batch_size": 1}
    shared, _ = train(write(tmp_path / "shared", model, data=packing, schedule={"steps": 1}, **ALL_OPEN))
    assert shared == pytest.approx(apart, rel=1e-5)
    said = [json.loads(line) for line in (tmp_path / "shared/runs/run/data.jsonl").read_text().splitlines()]
    assert len(said) == 1


@pytest.mark.parametrize(("model_type", "opened"), RANKED)
def test_replicas_and_shards_with_a_rank_of_texts_learn_what_one_process_does(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str, opened: Mapping[str, Any]
) -> None:
    # One picture among four items: of two ranks, one has texts alone in each step.
    keys: dict[str, Any] = {"pictures": 1, "optimizer": SMOOTH, **opened}
    model = tiny_vlm(model_type)
    losses, weights = train(write(tmp_path / "one", model, **keys))
    assert abs(losses[1] - losses[0]) > 1e-3
    for name in ("replicate", "shard"):
        file = write(tmp_path / name, model, **keys)
        found, moved = train(file, f"parallel.{name}=2", ranks=2)
        assert found == pytest.approx(losses, rel=1e-5)
        assert_close(weights, moved, atol=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(tiny_vlm: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_vlm("llava")
    keys: dict[str, Any] = {"trainable": {"lora": {"rank": 2}}, "freeze_multi_modal_projector": False}
    data: dict[str, Any] = {"batch_size": 2}
    whole = train(write(tmp_path / "whole", model, data=data, **keys), "schedule.steps=4")
    file = write(tmp_path / "parts", model, data=data, **keys)
    train(file, "schedule.steps=2")
    parts = train(file, "schedule.steps=4")
    assert len(whole[0]) == 4
    assert whole[0] == parts[0]
    assert whole[1].keys() == parts[1].keys()
    assert all(torch.equal(tensor, parts[1][name]) for name, tensor in whole[1].items())
