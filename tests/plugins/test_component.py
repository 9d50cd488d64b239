"""A module that is in no checkpoint: a condition from outside the package has a learned context."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from omnitune import config
from omnitune.batch import Batch
from omnitune.commands.check import check
from omnitune.commands.plan import plan
from omnitune.commands.train import train
from omnitune.conditions.base import Condition
from omnitune.families.base import Family, Noisy
from omnitune.options import option
from omnitune.random import Draw
from omnitune.testing.runs import metrics, small_run, write_run


class Context(nn.Module):
    """Some tokens that are learned."""

    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_tokens, width))

    def forward(self) -> Tensor:
        return self.tokens


@option
class LearnedContext(Condition):
    """Puts learned tokens behind each caption."""

    name: str
    num_tokens: int = 2

    def prepare(self, family: Family) -> None:
        family.add_component("context", partial(Context, self.num_tokens, 32))

    def before(self, family: Any, noisy: Noisy, batch: Batch, draw: Draw) -> Noisy:
        tokens = family.components["context"]()
        batch["prompt_embeds"] = [torch.cat([e.to(tokens), tokens]) for e in batch["prompt_embeds"]]
        return noisy


def run_on(model: Path, cache: Path, folder: Path, *words: str) -> config.Run:
    described = small_run(
        model, cache,
        conditions=[{"name": "test_component:LearnedContext"}],
        trainable=[{"params": "context", "lr": 1e-1}],
        optimizer={"name": "adamw", "lr": 1e-2},
        checkpoint={"every": 2},
        schedule={"steps": 4},
        validation={"every": 2, "prompts": ["rocket"], "size": "32x32", "steps": 1},
    )  # fmt: skip
    return config.load(write_run(folder / "run.yaml", described), words)[0]


def test_a_learned_context_trains_resumes_and_is_written(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = train(run_on(tiny_wan, cache, tmp_path, "name=whole")).folder
    train(run_on(tiny_wan, cache, tmp_path, "name=parts", "schedule.steps=2"))
    parts = train(run_on(tiny_wan, cache, tmp_path, "name=parts")).folder
    assert metrics(parts) == metrics(whole)
    file = Path("weights", "context", "model.safetensors")
    (one, other) = (load_file(folder / file)["tokens"] for folder in (whole, parts))
    assert torch.equal(one, other)
    before = run_on(tiny_wan, cache, tmp_path)
    start = make(tiny_wan)
    assert before.conditions
    assert (one - start).abs().max() > 1e-2


def make(model: Path) -> Tensor:
    from omnitune.families.wan import Wan

    families = [Wan.load(str(model), "cpu", torch.float32, only=[]) for _ in range(2)]
    for seed, family in enumerate(families):
        torch.manual_seed(seed)
        family.add_component("context", partial(Context, 2, 32))
        family.drop(["context"])
    tokens: list[Any] = [family.components["context"].tokens.detach() for family in families]
    assert torch.equal(*tokens)  # whatever was drawn before
    return tokens[0]


def test_plan_and_check_know_a_component_without_files(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    run = run_on(tiny_wan, cache, tmp_path)
    told = "\n".join(plan(run))
    assert "context (Context)                               64            64             0" in told
    assert "trainable.0: context" in told
    check(run)
