"""Wan 2.2 A14B: one network for high noise and one for low; a global batch goes to one of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Case
from test_training import seen, trainer_of

from omnitune.families.wan import Wan
from omnitune.objectives.diffusion import FlowMatching
from omnitune.random import Draw

CASE = Case("wan", "t2v-a14b", None)
BOUNDARY = 0.875
HIGH, LOW = (
    {"lora": {"rank": 2}, "params": "transformer.blocks"},
    {"lora": {"rank": 2}, "params": "transformer_2.blocks"},
)


def steps(trainer: Any, number: int) -> list[tuple[str, list[float]]]:
    """The expert of each micro-batch, and its levels."""
    with seen() as found:
        for _ in range(number):
            trainer.train_step(next(trainer.read()))
            trainer.step += 1
    return [(str(noisy.expert), noisy.u.tolist()) for noisy in found]


@pytest.mark.parametrize(("rule", "name"), [(HIGH, "transformer"), (LOW, "transformer_2")])
def test_one_trained_alone_is_loaded_alone_and_meets_its_levels(model, tmp_path: Path, rule, name) -> None:
    trainer = trainer_of(CASE, model(CASE), tmp_path, trainable=[rule], schedule={"steps": 6})
    assert set(trainer.family.components) == {name}
    found = steps(trainer, 6)
    assert {expert for expert, _ in found} == {name}
    assert all((u >= BOUNDARY) == (name == "transformer") for _, levels in found for u in levels)


def test_all_micro_batches_of_a_step_go_to_one_expert(model, tmp_path: Path) -> None:
    trainer = trainer_of(
        CASE, model(CASE), tmp_path, trainable=[HIGH, LOW], parallel={"micro_batch_size": 1},
        schedule={"steps": 12},
        objective={"name": "flow_matching", "shift": 7},
    )  # fmt: skip
    found = steps(trainer, 12)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert all(first[0] == second[0] for first, second in pairs)
    assert {first[0] for first, _ in pairs} == {"transformer", "transformer_2"}
    assert all((u >= BOUNDARY) == (expert == "transformer") for expert, levels in found for u in levels)


@pytest.mark.parametrize("timesteps", ["uniform", "logit_normal", "mode", "cosmap"])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_experts_share_the_levels_of_the_run_s_own_distribution(timesteps: Any, shift: float) -> None:
    family = Wan.load(Wan.variants["t2v-a14b"], "meta", torch.float32, only=["transformer", "transformer_2"])
    objective = FlowMatching(timesteps=timesteps, shift=shift)
    plain = objective.levels(family, {}, Draw(0, range(2000)))
    drawn = [objective.expert_levels(family, {}, Draw(0, [step], step=step)) for step in range(2000)]
    levels = torch.cat([u for u, _ in drawn])
    high = sum(name == "transformer" for _, name in drawn) / len(drawn)
    assert high == pytest.approx(float((plain >= BOUNDARY).float().mean()), abs=0.05)
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert float(levels.quantile(q)) == pytest.approx(float(plain.quantile(q)), abs=0.05)


@pytest.mark.parametrize("timesteps", ["uniform", "logit_normal", "mode", "cosmap"])
def test_the_cumulative_share_is_the_inverse_of_the_quantile(timesteps: Any) -> None:
    objective = FlowMatching(timesteps=timesteps)
    for u in (0.01, 0.3, 0.875, 0.99):
        p = torch.tensor(objective.cumulative(u), dtype=torch.float64)
        assert float(objective.quantile(p)) == pytest.approx(u, abs=1e-9)
