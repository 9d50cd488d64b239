"""What no rule names stays as it was, bit for bit, in memory and on disk."""

import math
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from omnitune import checkpoint, cli
from omnitune.commands import train as session
from omnitune.parallel.state import stored_shapes
from omnitune.testing.runs import small_run, write_run

LORA: Any = [{"params": "transformer.blocks.*.attn*", "lr": 3e-2, "lora": {"rank": 32, "alpha": 10}}]
PART: Any = [{"params": "transformer.blocks.1.ffn", "lr": 3e-2}]


@dataclass(frozen=True)
class Trained:
    """What a run leaves in memory and on disk."""

    parameters: dict[str, Tensor]
    """Of the live transformer, by the names that the published model has; adapters as well."""
    optimized: set[str]
    """Names of what the optimizer holds."""
    base: dict[str, Tensor]
    """Of the published model."""
    folder: Path

    @property
    def saved(self) -> checkpoint.Saved:
        saved, _ = checkpoint.newest(self.folder / "checkpoints")
        assert saved is not None
        return saved

    def changed(self) -> set[str]:
        """Parameters of the published model that are not what they were, bit for bit."""
        return {name for name, value in self.base.items() if not torch.equal(self.parameters[name], value)}


def train(home: Path, model: Path, cache: Path, rules: Any) -> Trained:
    write_run(home / "run.yaml", small_run(model, cache, trainable=rules, checkpoint={"every": 2}))
    caught: list[Any] = []
    with chdir(home), pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "finish", lambda *ended: caught.extend(ended))
        assert cli.main(["train", "run.yaml"]) == 0
    _, trainer, family, folder = caught
    names = {id(p): name for name, p in family.components.named_parameters()}
    optimized = {names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]}
    live = family.components["transformer"].named_parameters()
    parameters = {name.replace(".base_layer.", "."): p.detach() for name, p in live}
    base = dict(WanTransformer3DModel.from_pretrained(model / "transformer").named_parameters())
    return Trained(parameters, optimized, base, home / folder)


@pytest.fixture(scope="module")
def adapted(wide_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("adapted"), wide_wan, cache, LORA)


@pytest.fixture(scope="module")
def part(wide_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("part"), wide_wan, cache, PART)


@pytest.fixture(params=["adapted", "part"])
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def test_after_lora_training_the_base_is_bit_identical_and_every_adapter_moved(adapted: Trained) -> None:
    assert adapted.changed() == set()
    ups = {name: p for name, p in adapted.parameters.items() if ".lora_B." in name}  # zero at the start
    assert len(ups) == 2 * 2 * 4
    assert all(bool((p != 0).any()) for p in ups.values())


def test_after_training_one_part_all_else_is_bit_identical(part: Trained) -> None:
    assert part.changed() == {name for name in part.base if name.startswith("blocks.1.ffn.")}


def test_the_optimizer_holds_what_trains_and_nothing_else(adapted: Trained, part: Trained) -> None:
    assert adapted.optimized == {f"transformer.{name}" for name in adapted.parameters if ".lora_" in name}
    assert part.optimized == {f"transformer.{name}" for name in part.changed()}


def test_the_checkpoint_holds_no_frozen_tensor(trained: Trained) -> None:
    stored = stored_shapes(trained.saved.tensors)
    owners = {name.removeprefix("weights/") for name in stored if name.startswith("weights/")}
    states = {
        name.removeprefix("optimizer/").rpartition("/")[0] for name in stored if name.startswith("optimizer/")
    }
    assert owners == states == trained.optimized
    assert all(name.startswith(("weights/", "optimizer/")) for name in stored)


def test_a_lora_checkpoint_takes_at_most_four_times_its_adapter(adapted: Trained) -> None:
    adapter = sum(4 * p.numel() for name, p in adapted.parameters.items() if ".lora_" in name)
    assert adapter > 1_000_000
    size = sum(p.stat().st_size for p in adapted.saved.folder.rglob("*") if p.is_file())
    assert 3 * adapter < size <= 4 * adapter
    assert (
        math.prod((2, 2, 4, 2, 32, 256, 4)) == adapter
    )  # blocks, attentions, layers, A and B, rank, width, bytes


def test_the_trained_part_of_exported_weights_alone_differs_from_the_base(
    wide_wan: Path, cache: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run.yaml", small_run(wide_wan, cache, trainable=PART))
    with chdir(tmp_path):
        assert cli.main(["train", "run.yaml"]) == 0
    (file,) = (tmp_path / "runs/run/weights/transformer").glob("*.safetensors")
    exported = load_file(file)
    base = WanTransformer3DModel.from_pretrained(wide_wan / "transformer").state_dict()
    assert exported.keys() == base.keys()
    differing = {name for name, value in exported.items() if not torch.equal(value, base[name])}
    assert differing == {name for name in base if name.startswith("blocks.1.ffn.")}
