"""Several streams: a clip, and sound beside it that has a noise level of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from omnitune.batch import Batch, Streams
from omnitune.families.base import Denoiser, Noisy
from omnitune.objectives.diffusion import Diffusion, DynamicShift, Epsilon, FlowMatching, shifted
from omnitune.objectives.held_out import QuantileDraw
from omnitune.random import Draw

ROWS = 3
BETAS = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)
ALL, FLOW = [FlowMatching(shift=3), Epsilon()], FlowMatching(shift=3)


class Sounding(Denoiser):
    """A denoiser of two streams; its network predicts what the test says."""

    name = "sounding"
    streams_with_own_level = ("sound",)

    def __init__(self, predict: Any = None, alphas_cumprod: Tensor | None = None):
        self.predict = predict or (lambda noisy: noisy.target)
        self.alphas_cumprod = alphas_cumprod
        self.asked: list[tuple[list[str], Tensor]] = []

    def path(self, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        self.asked.append((list(x0), u))
        return super().path(u, x0)

    def num_tokens(self, x0: Streams) -> int:
        return sum(value[0, 0].numel() for value in x0.values())

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        self.seen = noisy
        found: Streams = self.predict(noisy)
        return found


class Together(Sounding):
    """One level for both streams."""

    streams_with_own_level = ()


Sounding.__abstractmethods__ = Together.__abstractmethods__ = frozenset()


def batch(**more: Any) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shapes = {"video": (4, 3, 2, 2), "sound": (5, 7)}
    x0 = {name: torch.randn(ROWS, *shape, generator=generator) for name, shape in shapes.items()}
    return {"x0": x0, "row_weight": torch.ones(ROWS), **more}


def seen(family: Sounding, objective: Diffusion = FLOW, **more: Any) -> Noisy:
    objective.loss(family, batch(**more), Draw(0, range(ROWS)))
    return family.seen


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_each_stream_is_mixed_at_its_own_level(objective: Any) -> None:
    schedule = torch.cumprod(1 - BETAS, 0) if objective.name == "epsilon" else None
    noisy = seen(Sounding(alphas_cumprod=schedule), objective)
    assert not torch.equal(noisy.at("video").u, noisy.at("sound").u)
    for name, x0 in noisy.x0.items():
        alpha, sigma, fed = objective.path(Sounding(alphas_cumprod=schedule), noisy.at(name).u, {})
        a, s = (v.view(-1, *[1] * (x0.ndim - 1)) for v in (alpha, sigma))
        torch.testing.assert_close(noisy.x[name], a * x0 + s * noisy.noise[name])
        assert torch.equal(noisy.at(name).fed, fed)


def test_levels_are_drawn_apart_and_the_path_is_asked_once_for_each() -> None:
    family = Sounding()
    noisy = seen(family)
    draw = Draw(0, range(ROWS))
    assert torch.equal(noisy.at("sound").u, shifted(torch.sigmoid(draw.normal("timestep.sound")), 3))
    assert torch.equal(noisy.at("video").u, shifted(torch.sigmoid(draw.normal("timestep")), 3))
    assert [names for names, _ in family.asked] == [["sound"], ["video"]]


def test_a_shift_by_tokens_counts_those_of_the_level() -> None:
    shift = DynamicShift(base_tokens=1, max_tokens=100)
    noisy = seen(Sounding(), FlowMatching(shift=shift))
    draw = Draw(0, range(ROWS))
    for name, purpose, tokens in (("video", "timestep", 12), ("sound", "timestep.sound", 7)):
        expected = shifted(torch.sigmoid(draw.normal(purpose)), shift.value(tokens))
        assert torch.equal(noisy.at(name).u, expected)


def test_the_video_s_draws_do_not_change_when_sound_gets_a_level() -> None:
    apart, together = seen(Sounding()), seen(Together())
    assert torch.equal(apart.x["video"], together.x["video"])
    assert torch.equal(together.at("sound").u, together.u)
    assert together.own == {}
    assert together.at("sound").fed is together.fed


def test_each_stream_counts_by_its_own_mask_and_weight() -> None:
    noisy = seen(Sounding(lambda noisy: {name: t + 1 for name, t in noisy.target.items()}))
    assert FLOW.row_losses(noisy, {n: t + 1 for n, t in noisy.target.items()}).tolist() == [2, 2, 2]
    noisy.own["sound"].mask = torch.tensor([[[1.0, 1, 1, 1, 1, 0, 0]]])
    noisy.own["sound"].weight = torch.tensor([1.0, 2, 3])
    wrong = {"video": noisy.target["video"] + 1, "sound": noisy.target["sound"].clone()}
    wrong["sound"][..., :5] += 1
    wrong["sound"][..., 5:] += 100
    assert FLOW.row_losses(noisy, wrong).tolist() == [2, 3, 4]


def test_both_levels_are_recorded_and_fixed_when_held_out() -> None:
    family = Sounding()
    loss = FLOW.loss(family, batch(), QuantileDraw(0, range(ROWS), torch.tensor([0.1, 0.5, 0.9])))
    noisy = family.seen
    assert torch.equal(noisy.at("video").u, noisy.at("sound").u)
    assert set(loss.metrics) == {"u", "u.sound"}
    assert loss.level is noisy.u
    assert loss.rows["samples"].tolist() == [0, 0, 0]
