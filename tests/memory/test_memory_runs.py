"""Checkpointing in whole runs: on ranks, at a resume, in the plan, and where it cannot be."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run
from safetensors.torch import load_file
from small_chats import small_chat_run
from torch import Tensor

from omnitune import config
from omnitune.commands.plan import plan
from omnitune.errors import UserError
from omnitune.families.wan import Wan
from omnitune.testing.runs import metrics, small_run, write_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "vlm_lora.yaml"
FULL = "memory.checkpointing=full"
SMOOTH = {"name": "adamw", "lr": 1e-2, "eps": 1e-2}
"""Does not make steps out of gradients that are rounding noise."""


def train(file: Path, *words: str, ranks: int = 1) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What a run logs of each step, and what it exports."""
    done = run("train", file, *words, cwd=file.parent, ranks=ranks)
    assert done.code == 0, done.err
    folder = file.parent / "runs" / file.stem
    found: dict[str, Tensor] = {}
    for path in sorted((folder / "weights").rglob("*.safetensors")):
        found |= load_file(path)
    return metrics(folder), found


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", ["projector only", pytest.param("LoRA", marks=pytest.mark.slow)])
def test_two_shards_learn_what_one_process_does(
    tiny_vlm: Callable[..., Path], tiny_wan: Path, cache: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "LoRA":
        described = small_run(tiny_wan, cache, optimizer=SMOOTH)
    else:
        keys = {"trainable": "full", "train_mm_proj_only": True, "optimizer": SMOOTH}
        described = small_chat_run(tiny_vlm("llava"), tmp_path, pictures=1, texts=3, **keys)
    alone, mine = train(write_run(tmp_path / "alone.yaml", described), FULL)
    shards, theirs = train(write_run(tmp_path / "shards.yaml", described), FULL, "parallel.shard=2", ranks=2)
    assert abs(alone[1]["loss"] - alone[0]["loss"]) > 1e-4
    assert [m["loss"] for m in shards] == pytest.approx([m["loss"] for m in alone], rel=1e-5)
    assert theirs.keys() == mine.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-5)


def test_a_run_may_go_on_with_it_and_ends_in_the_same_bits(
    tiny_wan: Path, cache: Path, tmp_path: Path
) -> None:
    lora = {"rank": 4, "alpha": 10, "dropout": 0.3}
    rules = [{"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": lora}]
    described = small_run(tiny_wan, cache, trainable=rules, schedule={"steps": 4})
    described["model"]["dtype"] = "bfloat16"
    whole, weights = train(write_run(tmp_path / "whole.yaml", described))
    parts = write_run(tmp_path / "parts.yaml", described)
    train(parts, "schedule.steps=2")
    found, moved = train(parts, FULL)
    assert len(whole) == 4
    assert found == whole
    assert_equal(weights, moved)
    assert config.load(tmp_path / "runs/parts/run.yaml")[0].memory.checkpointing == "full"
    draws = [(tmp_path / "runs" / name / "draws.jsonl").read_bytes() for name in ("whole", "parts")]
    assert draws[0] == draws[1]


def planned(*words: str, file: Path = EXAMPLE) -> list[str]:
    return [line for line in plan(config.load(file, words)[0]) if line.startswith("activation")]


@pytest.mark.parametrize(
    ("word", "blocks"), [("freeze_vision_tower=true", 36), ("freeze_vision_tower=false", 36 + 32)]
)
def test_the_plan_counts_the_layers_that_gradients_flow_through(word: str, blocks: int) -> None:
    told = [f"activation checkpointing: full, {blocks} blocks of model"]
    assert planned(FULL, word) == told
    assert planned(FULL, word, "data.cache=null") == told


def test_the_plan_says_nothing_where_it_is_off() -> None:
    assert planned("memory.checkpointing=none") == []


def test_the_plan_counts_a_text_encoder_that_trains(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    rules = [{"params": "text_encoder"}]
    file = write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache, trainable=rules))
    shape = Wan.load(str(tiny_wan), "meta", torch.float32)
    counts = {name: len(shape.blocks(name)) for name in ("transformer", "text_encoder")}
    assert min(counts.values()) > 0
    told = ", ".join(f"{count} blocks of {name}" for name, count in counts.items())
    assert planned(FULL, file=file) == [f"activation checkpointing: full, {told}"]


def test_a_word_that_is_none_of_its_values_is_refused(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    file = write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache))
    with pytest.raises(UserError) as told:
        config.load(file, ["memory.checkpointing=half"])
    assert str(told.value) == (
        "command line: memory.checkpointing: input should be 'none' or 'full', not 'half'"
    )


def test_it_is_refused_where_no_layer_repeats(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wan, "blocks", lambda family, component: [])
    file = write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache))
    with pytest.raises(UserError) as told:
        planned(FULL, file=file)
    assert str(told.value) == (
        "memory.checkpointing: full has no effect: no gradient flows through a repeated layer of wan here; "
        "leave it out"
    )
