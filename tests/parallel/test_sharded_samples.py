"""Samples while training change nothing of what is learned, where ranks hold shards of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run
from safetensors.torch import load_file
from torch import Tensor

from omnitune import checkpoint
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.parallel.state import load_whole
from omnitune.testing.runs import metrics, small_run, write_run

SAMPLES: dict[str, Any] = {"prompts": ["a fox"], "steps": 1, "size": "1x32x32", "every": 2, "guidance": 1}


def trained(model: Path, cache: Path, folder: Path, name: str, ranks: int, **keys: Any) -> Path:
    """The folder of a run that trains everything, blocks and what is outside of them, in bfloat16."""
    described = small_run(
        model, cache, trainable="full", optimizer={"name": "adamw", "lr": 1e-2}, schedule={"steps": 4},
        checkpoint={"every": 2, "keep": None}, ema={"decay": 0.5}, **keys,
    )  # fmt: skip
    described["model"]["dtype"] = "bfloat16"
    done = run("train", write_run(folder / f"{name}.yaml", described), cwd=folder, ranks=ranks)
    assert done.code == 0, done.err
    return folder / "runs" / name


def saved(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every checkpoint, and of every exported file."""
    found: dict[str, Tensor] = {}
    for one in checkpoint.list_saved(folder / "checkpoints"):
        tensors = load_whole(one.tensors, Mesh(Parallel()))
        found |= {f"{one.step}: {name}": tensor for name, tensor in tensors.items()}
    for kind in ("weights", "weights-raw"):
        files = list((folder / kind).rglob("*.safetensors"))
        assert files, kind
        for file in files:
            found |= {f"{file.relative_to(folder)}: {name}": t for name, t in load_file(file).items()}
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_samples_change_no_bit_of_checkpoints_weights_and_metrics(
    tiny_wan: Path, cache: Path, tmp_path: Path, ranks: int
) -> None:
    shown = trained(tiny_wan, cache, tmp_path, "shown", ranks, validation=SAMPLES)
    plain = trained(tiny_wan, cache, tmp_path, "plain", ranks)
    assert {p.name for p in (shown / "samples").iterdir()} == {f"step-{n:08d}" for n in (0, 2, 4)}
    assert not (plain / "samples").exists()
    assert metrics(shown) == metrics(plain)
    with_samples, without = saved(shown), saved(plain)
    assert with_samples.keys() == without.keys()
    assert [name for name, t in without.items() if not torch.equal(with_samples[name], t)] == []
    kept = {name: t for name, t in with_samples.items() if name.startswith(("2: ", "4: "))}
    outside = {n for n in kept if "transformer." in n and ".blocks." not in n}
    assert len(outside) > 10, "parameters outside the blocks train too"
    assert {t.dtype for t in kept.values()} == {torch.float32}
    assert (shown / "report.html").is_file()
