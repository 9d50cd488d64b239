"""The loss on held-out items: fixed levels, fixed noise, whatever the batch."""

from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_fixtures import Workplace
from diffusers import AutoencoderKLWan

from omnitune import config
from omnitune.commands.train import train_on
from omnitune.conditions.base import Condition
from omnitune.evaluate.data import deterministic, held_out
from omnitune.model import load_with_adapters, place, set_up
from omnitune.objectives.diffusion import Epsilon, FlowMatching
from omnitune.objectives.held_out import HeldOutLoss, QuantileDraw, Step, held_out_loss
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.random import Draw
from omnitune.resolve import resolve_run
from omnitune.run_folder import find_checkpoint, run_folder
from omnitune.testing.runs import small_run, write_run
from omnitune.testing.tiny import build_tiny

pytest_plugins = ["core_fixtures"]


@pytest.fixture(scope="module")
def step(tiny_wan, cache, tmp_path_factory, assets):
    """What a step of a run with dropout of captions and of LoRA is made of, on the held-out pictures."""
    root = tmp_path_factory.mktemp("held-out")
    with chdir(root):
        stated = small_run(tiny_wan, cache, conditions=[{"name": "caption_dropout", "probability": 0.9}])
        run = deterministic(config.load(write_run(root / "run.yaml", stated))[0])
        run = replace(run, data=held_out(run.data, [assets / "clips" / "validation"], None))
        job, mesh = resolve_run(run), Mesh(Parallel())
        index = job.index()
        job.fill_cache(index, job.open_cache(), mesh)
        family, compute = load_with_adapters(job, "cpu")
        place(family, compute, mesh)
        with torch.no_grad():
            for name, p in family.components.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        stages = job.live_stages(family)
        return Step(
            family,
            run.objective,
            run.conditions,
            stages,
            job.batches(index, job.open_cache(), mesh),
            mesh.device,
        )


def test_two_calls_give_the_same_bits_and_leave_no_trace(step):
    step.family.components.train()
    state = torch.random.get_rng_state()
    first = held_out_loss(step)
    torch.rand(3)
    torch.random.set_rng_state(state)
    assert held_out_loss(step) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in step.family.components.modules())
    assert not any(p.grad is not None for p in step.family.components.parameters())
    assert any(p.requires_grad for p in step.family.components.parameters())
    assert held_out_loss(step, seed=1).mean != first.mean


def test_the_batch_size_changes_speed_alone(step):
    one, four, all_ = (held_out_loss(step, batch_size=n) for n in (1, 4, 8))
    np.testing.assert_allclose(one.items, four.items, atol=1e-5, rtol=0)
    np.testing.assert_allclose(one.items, all_.items, atol=1e-5, rtol=0)
    assert len(set(one.items)) == 7
    assert one.mean == pytest.approx(np.mean(one.items))
    assert one.standard_error == pytest.approx(np.std(one.items, ddof=1) / np.sqrt(7))


def test_the_loss_is_the_objective_s_at_each_level_with_its_noise(step):
    """Levels and noise of one item worked out by hand, with an ordinary draw where it is asked for noise."""
    item = step.batches.dataset.index.items[2]
    u = torch.sigmoid(torch.special.ndtri(torch.tensor([0.25, 0.75])))
    u = 3 * u / (1 + 2 * u)  # the run's shift
    expected = 0.0
    for k in range(2):
        row = replace(step.batches.order.batch(0)[0], index=2, position=2)
        batch = step.batches.batch([row])
        draw = Draw(0, [f"{item.id}#{k}"])
        for stage in step.stages:
            batch = {**batch, **stage.run(batch, draw)}
        objective = replace(step.objective)
        object.__setattr__(objective, "levels", lambda *_, k=k: u[k : k + 1])
        with torch.no_grad():
            expected += float(objective.loss(step.family, batch, draw, ()).totals["samples"]) / 2
    assert held_out_loss(step, levels=2).items[2] == pytest.approx(expected, abs=1e-5)


def test_every_level_has_its_own_mean(step):
    found = held_out_loss(step)
    shifted = [3 * u / (1 + 2 * u) for u in torch.sigmoid(torch.special.ndtri((torch.arange(8) + 0.5) / 8))]
    assert [level.u for level in found.levels] == pytest.approx([float(u) for u in shifted], abs=1e-6)
    assert np.mean([level.mean for level in found.levels]) == pytest.approx(found.mean)
    assert len({level.mean for level in found.levels}) == 8
    one = held_out_loss(step, levels=1)
    assert one.levels[0].mean == one.mean
    assert one.levels[0].standard_error == one.standard_error


def test_a_condition_says_what_of_it_is_not_random(workplace: Workplace) -> None:
    class Plain(Condition):
        name = "plain"

    class Chancy(Condition):
        name = "chancy"

        def __init__(self, chance):
            self.chance = chance

        def deterministic(self):
            return Chancy(0)

    plain = Plain()
    dropout = workplace.run("conditions=[{name: caption_dropout}]").conditions
    run = replace(workplace.run(), conditions=[*dropout, plain, Chancy(0.5)])
    first, second = deterministic(run).conditions
    assert first is plain
    assert second.chance == 0


def test_captions_are_never_dropped(step):
    assert step.conditions == []
    rows = [replace(step.batches.order.batch(0)[0], position=i, index=i) for i in range(7)]
    assert "" not in step.batches.batch(rows)["caption"]


def test_a_model_that_is_worse_on_the_items_has_a_higher_loss(step):
    before = held_out_loss(step)
    weights = {n: p.detach().clone() for n, p in step.family.components.named_parameters() if p.requires_grad}
    params = dict(step.family.components.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            params[name].copy_(value + torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
        worse = held_out_loss(step)
        for name, value in weights.items():
            params[name].copy_(value)
    assert worse.mean > before.mean
    assert held_out_loss(step) == before


@pytest.mark.parametrize(
    "objective",
    [
        *(FlowMatching(timesteps=t) for t in ("uniform", "logit_normal", "mode", "cosmap")),
        FlowMatching(logit_mean=1.0, logit_std=0.5, shift=5.0),
        Epsilon(),
    ],
    ids=lambda o: f"{o.name}-{getattr(o, 'timesteps', '')}-{getattr(o, 'shift', '')}",
)
def test_levels_are_quantiles_of_the_run_s_own_distribution(objective):
    quantiles = torch.tensor([(k + 0.5) / 8 for k in range(8)])
    drawn = objective.levels(None, {}, Draw(0, range(6000)))
    levels = objective.levels(None, {}, QuantileDraw(0, range(8), quantiles))
    np.testing.assert_allclose(levels.sort().values, np.quantile(drawn, quantiles), atol=0.02)


def test_other_draws_stay_random():
    draw, plain = QuantileDraw(3, ["a", "b"], torch.tensor([0.1, 0.9])), Draw(3, ["a", "b"])
    assert torch.equal(draw.normal("noise", (4,)), plain.normal("noise", (4,)))
    assert torch.equal(draw.uniform("other"), plain.uniform("other"))
    assert draw.uniform("timestep", (2,)).tolist() == torch.tensor([[0.1, 0.1], [0.9, 0.9]]).tolist()


@pytest.fixture
def halves(empty_workplace: Workplace, tmp_path: Path) -> Workplace:
    """`clips` to train on, and `other` with a picture and a clip that are not; the VAE tells them apart."""
    model = build_tiny(tmp_path / "sure-wan")
    vae: Any = AutoencoderKLWan.from_pretrained(model / "vae")
    with torch.no_grad():
        vae.quant_conv.weight[:16] *= 10
        vae.quant_conv.weight[16:] = 0
        vae.quant_conv.bias[16:] = -20  # log-variance: the posterior's own noise would hide what was learned
    vae.save_pretrained(model / "vae")
    place = Workplace(empty_workplace.root, model)
    place.write()
    for folder, seed in (("other", 10), ("clips", 20)):
        for i, name in enumerate(("fox.mp4", "apple.png")):
            place.add(name, seed=seed + i)
        if folder != "clips":
            place.clips.rename(place.root / folder)
    return place


def measured(
    place: Workplace, mesh: Mesh, folder: str, overrides: Sequence[str], base: bool = False
) -> HeldOutLoss:
    """The loss of a run (trained, or its base) on a folder."""
    run = deterministic(place.run("data.cache=null", *overrides))
    job = resolve_run(replace(run, data=held_out(run.data, [Path(folder)], None)))
    saved = None if base else find_checkpoint(run_folder(run), None)
    family = set_up(job, mesh, saved, average=True)
    stages = job.live_stages(family)
    batches = job.batches(job.index(), job.open_cache(), mesh)
    return held_out_loss(Step(family, run.objective, run.conditions, stages, batches, mesh.device))


def test_an_item_keeps_its_loss_when_others_leave(workplace: Workplace, mesh: Mesh) -> None:
    whole = measured(workplace, mesh, "clips", [], base=True)  # sorted: apple, boat, cat, fox, rocket
    workplace.remove("boat.mp4", "cat.png")
    fewer = measured(workplace, mesh, "clips", [], base=True)
    assert list(fewer.items) == [whole.items[0], whole.items[3], whole.items[4]]


def test_random_windows_and_crops_change_nothing(workplace: Workplace, mesh: Mesh) -> None:
    workplace.add("long.mp4", frames=12, size=24)
    loose = ["data.window=random", "data.crop=random"]
    assert measured(workplace, mesh, "clips", loose, base=True) == measured(
        workplace, mesh, "clips", ["data.window=middle", "data.crop=center"], base=True
    )


def test_a_run_that_overfits_shows_it(halves: Workplace, mesh: Mesh) -> None:
    overrides = ["trainable=[{params: transformer, lr: 0.01}]", "schedule.steps=160", "data.batch_size=2"]
    train_on(halves.run("data.cache=null", *overrides), mesh)
    untrained, trained = (
        [measured(halves, mesh, folder, overrides, base=base).mean for folder in ("clips", "other")]
        for base in (True, False)
    )
    assert trained[0] < untrained[0]
    assert trained[1] - trained[0] > untrained[1] - untrained[0] + 0.05, (untrained, trained)
