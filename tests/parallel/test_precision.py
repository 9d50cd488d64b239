"""bfloat16, the default dtype: train, sample while training and after it, resume, on one rank and two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run
from small_chats import small_chat_run
from torch import nn

from omnitune import config
from omnitune.families.wan import Wan
from omnitune.model import place
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.parallel.precision import hold_master_weights
from omnitune.random import Draw
from omnitune.stages import encode
from omnitune.testing.runs import metrics, small_run, write_run
from omnitune.testing.training import start_training
from omnitune.trainable.adapters import apply_claims
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.rules import Lora, LoraEverywhere, claim

RULES = {
    "lora": [{"params": "transformer.blocks.*.attn*", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}],
    "full": "full",
    "text": [{"params": "transformer"}, {"params": "text_encoder", "lr": 1e-4}],
}
VALIDATION = {"prompts": ["a fox"], "steps": 2, "size": "9x32x32", "every": 2, "guidance": 2}


def described(tiny_wan, cache, kind, dtype, steps=3):
    model = {"family": "wan", "path": str(tiny_wan), "dtype": dtype}
    keys = {"trainable": RULES[kind], "validation": VALIDATION, "schedule": {"steps": steps}}
    return {**small_run(tiny_wan, cache, **keys), "model": model}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", RULES)
def test_training_with_samples_then_sampling_and_export_work_in_either_dtype(
    tiny_wan, cache, tmp_path, kind, dtype
):
    write_run(tmp_path / "a.yaml", described(tiny_wan, cache, kind, dtype))
    for words in (["train", "a.yaml"], ["sample", "runs/a"], ["export", "runs/a", "--out", "out"]):
        ended = run(*words, cwd=tmp_path)
        assert ended.code == 0, ended.err
    assert {p.name for p in (tmp_path / "runs/a/samples").glob("step-*")} == {
        f"step-{step:08d}" for step in (0, 2, 3)
    }
    assert all(torch.isfinite(torch.tensor(m["loss"])) for m in metrics(tmp_path / "runs/a"))


@pytest.mark.parametrize("kind", ["lora", "full", "text"])
def test_two_ranks_sample_while_they_train_in_bfloat16_and_learn_what_one_does(
    tiny_wan, cache, tmp_path, kind
):
    for name, ranks in (("one", 1), ("two", 2)):
        description = described(tiny_wan, cache, kind, "bfloat16")
        if kind == "lora":
            description["trainable"] = [{**RULES["lora"][0], "lora": {"rank": 4, "alpha": 8}}]
        write_run(tmp_path / f"{name}.yaml", description)
        ended = run("train", f"{name}.yaml", cwd=tmp_path, ranks=ranks)
        assert ended.code == 0, ended.err
    one, two = (metrics(tmp_path / "runs" / name) for name in ("one", "two"))
    assert [m["loss"] for m in two] == pytest.approx([m["loss"] for m in one], rel=1e-3)


def test_dropout_stays_on_after_a_sample_so_that_resume_is_exact(tiny_wan, cache, tmp_path):
    for name in ("whole", "halves"):
        write_run(tmp_path / f"{name}.yaml", described(tiny_wan, cache, "lora", "float32", steps=4))
    assert run("train", "whole.yaml", cwd=tmp_path).code == 0
    assert run("train", "halves.yaml", "schedule.steps=3", cwd=tmp_path).code == 0
    assert run("train", "halves.yaml", cwd=tmp_path).code == 0
    whole, halves = (metrics(tmp_path / "runs" / name) for name in ("whole", "halves"))
    assert halves == whole
    write_run(
        tmp_path / "plain.yaml", {**described(tiny_wan, cache, "lora", "float32", steps=4), "validation": {}}
    )
    assert run("train", "plain.yaml", cwd=tmp_path).code == 0
    assert metrics(tmp_path / "runs/plain") == whole, "samples change nothing of what is learned"


def test_adapters_see_and_compute_the_dtype_of_the_layer_they_are_on(tiny_wan):
    family = Wan.load(str(tiny_wan), "cpu", torch.bfloat16, only=["transformer"])
    claims = claim(
        family.components,
        spell_rules(
            LoraEverywhere(lora=Lora(rank=2)),
            Freezing(),
            family.components,
            family.roles,
            family.cores,
            family.lora_targets,
        ),
    )
    place(family, apply_claims(family.components, claims, 0), Mesh(Parallel()))
    seen = set()
    for name, module in family.components.named_modules():
        if name.endswith("lora_A.default"):
            assert module.weight.dtype == torch.float32
            module.register_forward_hook(
                lambda layer, args, made: seen.add((args[0].dtype, layer.weight.dtype, made.dtype))
            )
    family.components["transformer"](
        torch.zeros(1, 16, 1, 4, 4, dtype=torch.bfloat16), torch.tensor([5.0]),
        torch.zeros(1, 8, 32, dtype=torch.bfloat16),
    )  # fmt: skip
    assert seen == {(torch.bfloat16,) * 3}


class Block(nn.Module):
    """Looks at a weight's dtype before it calls the layer, as T5's feed-forward does."""

    def __init__(self) -> None:
        super().__init__()
        self.wo = nn.Linear(4, 4)

    def forward(self, x):
        return self.wo(x.to(self.wo.weight.dtype))


def test_a_block_sees_its_weights_in_the_compute_dtype_and_gradients_reach_the_masters():
    block = Block()
    names = [name for name, _ in block.named_parameters()]
    hold_master_weights(nn.Sequential(block), [block], {f"0.{n}": torch.bfloat16 for n in names})
    out = block(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert block.wo.weight.dtype == block.wo.weight.grad.dtype == torch.float32
    assert [name for name, _ in block.named_parameters()] == names


@pytest.mark.parametrize("keys", [{}, {"memory": {"checkpointing": "full"}}], ids=["whole", "checkpointed"])
def test_a_head_that_trains_whole_is_computed_again_as_it_was(
    tiny_vlm: Callable[..., Path], tmp_path: Path, keys: dict[str, Any]
) -> None:
    """Its gradient in bfloat16 is that in fp32, up to rounding, and is stored in fp32."""
    opened = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False, **keys}
    described = small_chat_run(tiny_vlm("llava"), tmp_path / "chats", 2, 2, trainable="full", **opened)
    grads = {}
    for dtype in ("float32", "bfloat16"):
        described["model"]["dtype"] = dtype
        loaded = config.load(write_run(tmp_path / "run.yaml", described), ())[0]
        trainer = start_training(loaded, tmp_path).trainer
        (batch,) = next(trainer.read())
        draw = Draw(loaded.seed, batch["position"])
        loss = trainer.objective.loss(
            trainer.family, encode(batch, draw, trainer.stages, torch.device("cpu")), draw, ()
        )
        sum(loss.totals.values()).backward()
        (head,) = (p for name, p in trainer.weights().items() if name.endswith("lm_head.weight"))
        assert head.dtype == head.grad.dtype == torch.float32
        grads[dtype] = head.grad
    apart = torch.linalg.vector_norm(grads["bfloat16"] - grads["float32"])
    assert 0 < apart < 0.03 * torch.linalg.vector_norm(grads["float32"])
