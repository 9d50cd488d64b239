"""Schedules at points that one can work out, and optimizers against plain loops."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from omnitune.errors import UserError
from omnitune.optim import Adam, AdamW, Schedule
from omnitune.parallel.mesh import Mesh, Parallel


def factors(**options: Any) -> list[float]:
    schedule = Schedule(**options)
    return [schedule.factor(step) for step in range(schedule.steps)]


def test_a_constant_schedule_leaves_rates_alone() -> None:
    assert factors(steps=5) == [1.0] * 5
    assert factors(steps=5, floor=0.5) == [1.0] * 5


def test_warmup_rises_linearly_and_reaches_1_in_its_last_step() -> None:
    assert factors(steps=6, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.333, 0.999])
@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_a_warmup_below_1_is_a_share_of_all_steps(share: float, decay: str) -> None:
    for steps in (1, 7, 100, 1000):
        expected = factors(steps=steps, warmup=min(round(share * steps), steps - 1), decay=decay)
        if round(share * steps) < steps:
            assert factors(steps=steps, warmup=share, decay=decay) == expected


@pytest.mark.parametrize("decay", ["linear", "cosine", "polynomial"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_decay_starts_at_1_after_warmup_and_ends_at_its_floor(decay: str, floor: float) -> None:
    found = factors(steps=103, warmup=2, decay=decay, floor=floor)
    assert found[2] == 1
    assert found[-1] == pytest.approx(floor)
    assert found[2:] == sorted(found[2:], reverse=True)


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("cosine", 0.5), ("polynomial", 0.25)])
def test_a_decay_is_where_it_belongs_half_way(decay: str, middle: float) -> None:
    assert factors(steps=101, decay=decay)[50] == pytest.approx(middle)
    assert factors(steps=101, decay=decay, floor=0.2)[50] == pytest.approx(0.2 + 0.8 * middle)


def test_a_cosine_is_a_cosine() -> None:
    assert factors(steps=101, decay="cosine")[25] == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_a_polynomial_has_its_power() -> None:
    assert factors(steps=101, decay="polynomial", power=3)[50] == pytest.approx(0.125)
    assert factors(steps=101, decay="polynomial", power=1) == pytest.approx(
        factors(steps=101, decay="linear")
    )


def test_pieces_hold_from_their_step_on() -> None:
    found = factors(steps=7, decay="piecewise", pieces=[(2, 0.5), (5, 0.1)])
    assert found == [1, 1, 0.5, 0.5, 0.5, 0.1, 0.1]


DECAYS = ("linear", "cosine", "polynomial")


@pytest.mark.parametrize("way", ["restart", "continue"])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("reached", "steps"), [(20, 35), (9, 35), (9, 15)])
def test_a_changed_length_keeps_what_was_trained_and_never_jumps(
    decay: Any, way: Any, reached: int, steps: int
) -> None:
    stated: dict[str, Any] = {"decay": decay, "warmup": 2, "floor": 0.1}
    before = Schedule(steps=20, **stated)
    after = Schedule(steps=steps, extend=way, **stated).after(before, reached)
    found, old = [after.factor(step) for step in range(steps)], [before.factor(step) for step in range(20)]
    assert found[:reached] == old[:reached]
    rest = found[reached:]
    if way == "restart":
        assert rest == factors(steps=steps - reached, **stated)
    else:
        assert [*found[2:reached], *rest] == sorted(found[2:], reverse=True)
    assert found[-1] == pytest.approx(0.1)
    again = Schedule(steps=steps, extend=way, **stated).after(after, steps - 1)
    assert again == after


@pytest.mark.parametrize("stated", [{"decay": "constant", "warmup": 2}, {"decay": "linear", "floor": 1.0}])
def test_rates_that_stay_may_be_of_any_length(stated: dict[str, Any]) -> None:
    before = Schedule(steps=20, **stated)
    assert Schedule(steps=40, **stated).after(before, 20) == Schedule(steps=40, **stated)


def test_a_length_may_change_within_the_warmup() -> None:
    before = Schedule(steps=20, warmup=5, decay="cosine")
    assert Schedule(steps=40, warmup=5, decay="cosine").after(before, 4).extended == ()


def test_a_rate_that_would_jump_is_refused_with_both_ways() -> None:
    before = Schedule(steps=20, decay="linear")
    told = r"^schedule.steps: 40, .* from 0 to 0.487 of .*: restart \(.* 20 steps .*\) or continue"
    with pytest.raises(UserError, match=told):
        Schedule(steps=40, decay="linear").after(before, 20)
    with pytest.raises(UserError, match=r"to 0, where continue would stay; state schedule\.extend: restart"):
        Schedule(steps=40, decay="linear", extend="continue").after(before, 20)
    warm = Schedule(steps=20, decay="linear", warmup=8)
    with pytest.raises(UserError, match="restart warms up for 8 steps again, and 5 are left"):
        Schedule(steps=25, decay="linear", warmup=8, extend="restart").after(warm, 20)


def test_a_length_is_changed_again_and_again() -> None:
    stated: dict[str, Any] = {"decay": "cosine", "floor": 0.2}
    once = Schedule(steps=20, extend="restart", **stated).after(Schedule(steps=10, **stated), 10)
    twice = Schedule(steps=30, extend="continue", **stated).after(once, 15)
    assert twice.extended == ((10, 10, "restart"), (20, 15, "continue"))
    assert [twice.factor(step) for step in range(15)] == [once.factor(step) for step in range(15)]
    changed = Schedule(steps=30, extend="restart", **stated).after(twice, 15)
    assert changed.extended == ((10, 10, "restart"), (20, 15, "restart"))


def test_one_step_and_steps_beyond_the_end_have_a_rate() -> None:
    assert factors(steps=1, decay="cosine") == [1.0]
    assert Schedule(steps=10, decay="linear", floor=0.3).factor(50) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"steps": 5, "warmup": 5}, r"warmup must be at least 0 and below steps \(5\), not 5"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"warmup": 2.5}, "warmup must be whole steps, or a share below 1, not 2.5"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\], not 1.5"),
        ({"decay": "polynomial", "power": -1.0}, "power must be above 0, not -1.0"),
        ({"pieces": [(1, 0.5)]}, "pieces and decay: piecewise go together"),
        ({"decay": "piecewise"}, "pieces and decay: piecewise go together"),
        ({"decay": "piecewise", "pieces": [(3, 0.5), (1, 0.1)]}, r"pieces must rise in step, not \[3, 1\]"),
        ({"decay": "piecewise", "pieces": [(3, 0.5), (3, 0.1)]}, r"pieces must rise in step, not \[3, 3\]"),
    ],
)
def test_schedules_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


# Optimizers


@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-4}, "lr must be 0 or more, not -0.0001"),
        ({"eps": -1.0}, "eps must be 0 or more, not -1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, not -0.1"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), not \[0.9, 1.0\]"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0, or null for none, not 0.0"),
    ],
)
def test_optimizers_that_cannot_be_are_refused(
    kind: type[AdamW] | type[Adam], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def problem() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(5, 3), torch.randn(7, 5)


def adamw_by_hand(
    param: torch.Tensor,
    grads: list[torch.Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> torch.Tensor:
    """Algorithm 2 of Loshchilov and Hutter 2017."""
    value, m, v = param.double(), 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * grad.double()
        v = betas[1] * v + (1 - betas[1]) * grad.double() ** 2
        update = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)) ** 0.5 + eps)
        value = value - lr * update - lr * decay * value
    return value.float()


def test_adamw_is_the_published_algorithm() -> None:
    (model, _), options = problem(), AdamW(lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1)
    grads = [torch.randn(3, 5) for _ in range(3)]
    expected = adamw_by_hand(model.weight.detach(), grads, 0.01, (0.8, 0.99), 1e-6, 0.1)
    optimizer = options.build([{"params": [model.weight], "lr": 0.01, "weight_decay": 0.1}])
    for grad in grads:
        model.weight.grad = grad
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, Adam])
def test_three_steps_are_those_of_torch(kind: type[AdamW] | type[Adam]) -> None:
    (mine, x), (plain, _) = problem(), problem()
    group = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = kind(betas=(0.8, 0.99), eps=1e-6).build([{"params": list(mine.parameters()), **group}])
    reference = getattr(torch.optim, kind.__name__)(plain.parameters(), betas=(0.8, 0.99), eps=1e-6, **group)
    for _ in range(3):
        for model, stepping in ((mine, optimizer), (plain, reference)):
            stepping.zero_grad()
            model(x).square().mean().backward()
            stepping.step()
    torch.testing.assert_close(mine.weight, plain.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mine.bias, plain.bias, rtol=1e-6, atol=1e-7)


def test_rules_keep_their_own_rates() -> None:
    model, x = problem()
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = AdamW().build(
        [
            {"params": [model.weight], "lr": 0.0, "weight_decay": 0.5},
            {"params": [model.bias], "lr": 0.1, "weight_decay": 0.0},
        ]
    )
    model(x).square().mean().backward()
    optimizer.step()
    assert torch.equal(model.weight, before[0])
    torch.testing.assert_close((model.bias - before[1]).abs(), torch.full((3,), 0.1), rtol=1e-4, atol=0)


class Gradients(torch.optim.SGD):
    """Moves parameters by minus their gradient, so that the gradient can be read off."""

    def __init__(self, params: list[nn.Parameter]):
        super().__init__(params, lr=1.0)


@pytest.mark.parametrize(("max_norm", "length"), [(1.0, 1.0), (13.0, 13.0), (20.0, 13.0), (None, 13.0)])
def test_a_step_scales_the_gradient_of_all_parameters_together_to_the_norm(
    max_norm: float | None, length: float
) -> None:
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    params[0].grad, params[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    norm = Mesh(Parallel()).step(Gradients(params), max_norm)
    assert norm.item() == 13  # before clipping
    moved = -torch.cat([p.detach() for p in params])
    torch.testing.assert_close(moved, torch.tensor([3.0, 4.0, 12.0]) * length / 13, rtol=1e-5, atol=0)


def test_a_step_forgets_its_gradients() -> None:
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    Mesh(Parallel()).step(Gradients([param]), 1.0)
    assert param.grad is None


def test_a_parameter_without_gradient_stays() -> None:
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    params[0].grad = torch.ones(2)
    Mesh(Parallel()).step(Gradients(params), None)
    assert torch.equal(params[1].detach(), torch.ones(2))
