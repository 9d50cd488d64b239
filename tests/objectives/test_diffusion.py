"""Objectives against their papers: paths, targets, weights, distributions of levels, sums."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor
from torch.distributions import Normal

from omnitune.batch import Batch, LossSum, Streams
from omnitune.conditions.base import Condition
from omnitune.errors import UserError
from omnitune.families.base import Denoiser, Noisy
from omnitune.objectives.diffusion import (
    Diffusion,
    DynamicShift,
    Epsilon,
    FlowMatching,
    VPrediction,
    zero_terminal,
)
from omnitune.random import Draw

ROWS, SHAPE = 3, (2, 3, 4, 5)  # C, T, H, W
BETAS = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)
LINEAR = torch.cumprod(1 - BETAS, 0)
"""alphas_cumprod of Ho et al. 2020."""


class Toy(Denoiser):
    """A denoiser whose network is a function; flow unless it is given a schedule."""

    name = "toy"

    def __init__(self, network: Callable[[Noisy], Tensor], alphas_cumprod: Tensor | None = None):
        self.network, self.alphas_cumprod = network, alphas_cumprod
        self.seen: Noisy | None = None

    def num_tokens(self, x0: Streams) -> int:
        return x0["x"][0, 0].numel()

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        self.seen = noisy
        return {"x": self.network(noisy)}


Toy.__abstractmethods__ = frozenset()  # what loads and exports is of no concern here


def toy(network: Callable[[Noisy], Tensor] | None = None, alphas_cumprod: Tensor | None = None) -> Toy:
    return Toy(network or (lambda noisy: torch.zeros_like(noisy.x["x"])), alphas_cumprod)


def batch(rows: int = ROWS, weights: list[float] | None = None) -> Batch:
    x0 = torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0))
    return {"x0": {"x": x0}, "row_weight": torch.tensor(weights or [1.0] * rows)}


def draw(rows: int = ROWS) -> Draw:
    return Draw(0, range(rows))


def seen(objective: Diffusion, family: Toy, *conditions: Condition) -> tuple[LossSum, Noisy]:
    loss = objective.loss(family, batch(), draw(), conditions)
    assert family.seen is not None
    return loss, family.seen


def total(loss: LossSum) -> float:
    return loss.totals["samples"].item()


class Edit(Condition):
    """Sets fields of what is noised."""

    def __init__(self, **fields: Any):
        self.fields = fields

    def before(self, family: Any, noisy: Noisy, batch: Batch, draw: Draw) -> Noisy:
        for name, value in self.fields.items():
            setattr(noisy, name, value)
        return noisy


OBJECTIVES = {
    "flow": (FlowMatching(), None),
    "epsilon": (Epsilon(), LINEAR),
    "v": (VPrediction(), LINEAR),
    "v at zero terminal SNR": (VPrediction(zero_terminal_snr=True), LINEAR),
}
every_objective = pytest.mark.parametrize(
    ("objective", "schedule"), OBJECTIVES.values(), ids=OBJECTIVES.keys()
)


# Sums


@every_objective
def test_the_loss_is_0_where_the_network_predicts_the_target(
    objective: Diffusion, schedule: Tensor | None
) -> None:
    family = toy(lambda noisy: noisy.target["x"], schedule)
    objective.prepare(family)
    assert total(objective.loss(family, batch(), draw())) == 0


@every_objective
def test_the_loss_is_a_sum_over_rows_of_their_mean_squared_errors(
    objective: Diffusion, schedule: Tensor | None
) -> None:
    loss, noisy = seen(objective, toy(lambda noisy: noisy.x["x"] * 0.3, schedule))
    error = (0.3 * noisy.x["x"] - noisy.target["x"]) ** 2
    assert total(loss) == pytest.approx(sum(row.mean().item() for row in error), rel=1e-5)


@every_objective
def test_rows_of_weight_0_add_nothing(objective: Diffusion, schedule: Tensor | None) -> None:
    family = toy(alphas_cumprod=schedule)
    three = objective.loss(family, batch(weights=[1.0, 1.0, 0.0]), draw())
    two = objective.loss(
        family, {**batch(), "x0": {"x": batch()["x0"]["x"][:2]}, "row_weight": torch.ones(2)}, draw(2)
    )
    assert total(three) == pytest.approx(total(two), rel=1e-6)
    assert three.metrics["u"].item() == pytest.approx(two.metrics["u"].item(), rel=1e-6)


@every_objective
def test_a_loss_is_the_same_in_whatever_batches_its_rows_come(
    objective: Diffusion, schedule: Tensor | None
) -> None:
    family, whole = toy(alphas_cumprod=schedule), batch()
    alone = [
        objective.loss(
            family, {"x0": {"x": whole["x0"]["x"][i : i + 1]}, "row_weight": torch.ones(1)}, Draw(0, [i])
        )
        for i in range(ROWS)
    ]
    assert total(objective.loss(family, whole, draw())) == pytest.approx(sum(map(total, alone)), rel=1e-5)


def test_masked_elements_leave_the_average() -> None:
    mask = torch.zeros(ROWS, 1, *SHAPE[1:])
    mask[0, :, 1:], mask[1, :, :, :2, 3:] = 1, 1  # row 2 has none
    loss, noisy = seen(FlowMatching(), toy(lambda noisy: noisy.x["x"]), Edit(mask=mask))
    error = (noisy.x["x"] - noisy.target["x"]) ** 2
    expected = error[0, :, 1:].mean() + error[1, :, :, :2, 3:].mean()
    assert total(loss) == pytest.approx(expected.item(), rel=1e-5)


def test_a_mask_of_ones_changes_nothing() -> None:
    plain, _ = seen(FlowMatching(), toy())
    masked, _ = seen(FlowMatching(), toy(), Edit(mask=torch.ones(ROWS, 1, 1, 1, 1)))
    assert total(masked) == pytest.approx(total(plain), rel=1e-6)


def test_a_weight_scales_errors_and_not_their_number() -> None:
    weight = torch.tensor([0.0, 1.0, 3.0])
    loss, noisy = seen(FlowMatching(), toy(), Edit(weight=weight))
    means = (noisy.target["x"] ** 2).flatten(1).mean(1)
    assert total(loss) == pytest.approx((means @ weight).item(), rel=1e-5)


def test_a_weight_and_a_mask_of_frames_act_on_frames() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1, 1).expand(ROWS, 1, 3, 1, 1)
    mask = torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 3, 1, 1).expand(ROWS, 1, 3, 1, 1)
    loss, noisy = seen(FlowMatching(), toy(), Edit(weight=weight, mask=mask))
    square = noisy.target["x"] ** 2
    expected = (square[:, :, 0].flatten(1).mean(1) + 4 * square[:, :, 2].flatten(1).mean(1)).sum() / 2
    assert total(loss) == pytest.approx(expected.item(), rel=1e-5)


@every_objective
def test_levels_may_differ_between_frames(objective: Diffusion, schedule: Tensor | None) -> None:
    u = torch.tensor([0.0, 0.25, 0.9]).view(1, 1, 3, 1, 1).expand(ROWS, 1, 3, 1, 1)
    _, noisy = seen(objective, toy(alphas_cumprod=schedule), Edit(u=u))
    assert noisy.fed.shape == u.shape
    for frame in range(3):
        whole = Edit(u=u[:, 0, frame, 0, 0])
        _, flat = seen(objective, toy(alphas_cumprod=schedule), whole)
        assert torch.equal(noisy.x["x"][:, :, frame], flat.x["x"][:, :, frame])
        assert torch.equal(noisy.target["x"][:, :, frame], flat.target["x"][:, :, frame])


def test_a_frame_at_level_0_is_clean_on_the_straight_path() -> None:
    u = torch.tensor([0.0, 0.5, 0.5]).view(1, 1, 3, 1, 1).expand(ROWS, 1, 3, 1, 1)
    loss, noisy = seen(FlowMatching(), toy(), Edit(u=u))
    assert torch.equal(noisy.x["x"][:, :, 0], noisy.x0["x"][:, :, 0])
    assert loss.metrics["u"].item() == pytest.approx(ROWS * 0.5)  # clean frames have no level


def test_two_streams_are_summed_and_have_noise_of_their_own() -> None:
    two = {name: batch()["x0"]["x"] for name in ("x", "audio")}

    class Both(Toy):
        def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
            self.seen = noisy
            return {name: torch.zeros_like(value) for name, value in noisy.x.items()}

    family = Both(lambda noisy: noisy.x["x"])
    loss = FlowMatching().loss(family, {**batch(), "x0": two}, draw())
    assert family.seen is not None
    noisy = family.seen
    assert not torch.equal(noisy.noise["x"], noisy.noise["audio"])
    means = [(target**2).flatten(1).mean(1).sum() for target in noisy.target.values()]
    assert total(loss) == pytest.approx(sum(means).item(), rel=1e-5)


# Paths and targets


@pytest.mark.parametrize("u", [0.0, 0.1, 0.5, 0.95])
def test_x_0_and_noise_follow_from_x_t_and_velocity(u: float) -> None:
    _, noisy = seen(FlowMatching(), toy(), Edit(u=torch.full((ROWS,), u)))
    x_t, velocity = noisy.x["x"], noisy.target["x"]
    torch.testing.assert_close(x_t - u * velocity, noisy.x0["x"])
    torch.testing.assert_close(x_t + (1 - u) * velocity, noisy.noise["x"])
    assert torch.equal(noisy.fed, torch.full((ROWS,), 1000 * u))


@pytest.mark.parametrize("u", [0.0, 0.1, 0.5, 0.95])
def test_x_0_and_noise_follow_from_x_t_and_v_and_v_from_epsilon(u: float) -> None:
    level = Edit(u=torch.full((ROWS,), u))
    _, by_v = seen(VPrediction(), toy(alphas_cumprod=LINEAR), level)
    _, by_eps = seen(Epsilon(), toy(alphas_cumprod=LINEAR), level)
    a = LINEAR[int(1000 * u)]
    alpha, sigma = a.sqrt().float(), (1 - a).sqrt().float()
    x_t, v, eps = by_v.x["x"], by_v.target["x"], by_eps.target["x"]
    assert torch.equal(by_eps.x["x"], x_t)
    torch.testing.assert_close(alpha * x_t - sigma * v, by_v.x0["x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sigma * x_t + alpha * v, by_v.noise["x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((x_t - sigma * eps) / alpha, by_v.x0["x"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((alpha * eps - sigma * by_v.x0["x"]), v)
    assert by_v.fed.tolist() == [int(1000 * u)] * ROWS


def test_levels_of_the_discrete_schedule_are_its_steps_equally_often() -> None:
    u = torch.tensor([0.0, 0.0009999, 0.001, 0.5, 0.9990001, 1 - 2**-24])
    _, _, step = Epsilon().path(toy(alphas_cumprod=LINEAR), u, {})
    assert step.tolist() == [0, 0, 1, 500, 999, 999]


def test_noise_is_mixed_in_fp32_whatever_the_latents_are() -> None:
    half = {"x0": {"x": batch()["x0"]["x"].bfloat16()}, "row_weight": torch.ones(ROWS)}
    family = toy()
    FlowMatching().loss(family, half, draw())
    assert family.seen is not None
    assert {t.dtype for t in (family.seen.x["x"], family.seen.target["x"], family.seen.fed)} == {
        torch.float32
    }


# Levels


class Given:
    """Draws that were decided beforehand."""

    def __init__(self, values: Tensor):
        self.values = values

    def uniform(self, purpose: str) -> Tensor:
        return self.values

    normal = uniform


GRID = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def levels(objective: FlowMatching, given: Tensor, tokens: int = 60) -> Tensor:
    family = SimpleNamespace(num_tokens=lambda x0: tokens)
    return objective.levels(family, {}, Given(given))  # type: ignore[arg-type]


def cdf(objective: FlowMatching, u: Tensor) -> Tensor:
    """P(level <= u) before the shift, from Esser et al. 2024, section 3.1."""
    if objective.timesteps == "logit_normal":
        return Normal(objective.logit_mean, objective.logit_std).cdf(torch.logit(u))
    if objective.timesteps == "cosmap":  # integral of 2 / (pi - 2 pi t + 2 pi t^2), Eq. 21
        return 2 / math.pi * torch.atan(u / (1 - u))
    assert objective.timesteps == "uniform"
    return u


DISTRIBUTIONS = [
    FlowMatching(timesteps="uniform"),
    FlowMatching(timesteps="logit_normal"),
    FlowMatching(timesteps="logit_normal", logit_mean=-0.5, logit_std=0.7),
    FlowMatching(timesteps="cosmap"),
]
KOLMOGOROV = 1.95
"""Times 1 / sqrt(n): one in a thousand fair samples is farther from its CDF."""


@pytest.mark.parametrize("objective", DISTRIBUTIONS, ids=lambda o: f"{o.timesteps} {o.logit_mean}")
def test_levels_have_the_published_distribution(objective: FlowMatching) -> None:
    rows = 4000
    u = objective.levels(toy(), {}, draw(rows)).double().sort().values
    steps = torch.arange(rows) / rows
    assert (cdf(objective, u) - steps).abs().max() < KOLMOGOROV / math.sqrt(rows)


def test_uniform_levels_are_the_uniform_draw() -> None:
    assert torch.equal(levels(FlowMatching(timesteps="uniform"), GRID), GRID)


def test_quantiles_of_logit_normal_levels_are_those_of_a_normal_through_a_sigmoid() -> None:
    objective = FlowMatching(timesteps="logit_normal", logit_mean=0.3, logit_std=2.0)
    z = Normal(0.0, 1.0).icdf(GRID)
    torch.testing.assert_close(cdf(objective, levels(objective, z)), GRID)


def test_the_draw_of_cosmap_is_its_cdf() -> None:
    objective = FlowMatching(timesteps="cosmap")
    torch.testing.assert_close(cdf(objective, levels(objective, GRID)), GRID)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.81, 1.29, 1.75])
def test_quantiles_of_mode_are_those_of_the_paper(scale: float) -> None:
    """Eq. 20 of Esser et al. 2024 at u = 0, 1/4, 1/2, 1: cos^2(pi / 8) = (2 + sqrt 2) / 4."""
    given = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    quarter = 0.75 - scale * ((2 + math.sqrt(2)) / 4 - 0.75)
    expected = torch.tensor([1.0, quarter, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(levels(FlowMatching(timesteps="mode", mode_scale=scale), given), expected)


def test_mode_falls_with_its_draw_over_the_whole_legal_range() -> None:
    for scale in (-1.0, 2 / (math.pi - 2)):
        u = levels(FlowMatching(timesteps="mode", mode_scale=scale), torch.linspace(0, 1, 1001).double())
        assert (u.diff() <= 1e-9).all()


def test_a_positive_mode_scale_favours_the_middle() -> None:
    rows, objective = 4000, FlowMatching(timesteps="mode", mode_scale=1.29)
    u = objective.levels(toy(), {}, draw(rows))
    low, high = (levels(objective, torch.tensor([q], dtype=torch.float64)).item() for q in (0.75, 0.25))
    inside = ((low < u) & (u < high)).double().mean().item()
    assert high - low < 0.5
    assert inside == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / rows))


def test_a_shift_of_3_moves_the_middle_to_three_quarters_and_keeps_the_ends() -> None:
    given = torch.tensor([0.0, 0.5, 1.0])
    found = levels(FlowMatching(timesteps="uniform", shift=3), given)
    assert found.tolist() == [0.0, 0.75, 1.0]


def test_a_shift_multiplies_the_odds_of_noise() -> None:
    found = levels(FlowMatching(timesteps="uniform", shift=2.5), GRID)
    torch.testing.assert_close(found / (1 - found), 2.5 * GRID / (1 - GRID))


def test_the_dynamic_shift_is_that_of_flux() -> None:
    assert DynamicShift().value(256) == pytest.approx(math.exp(0.5))
    assert DynamicShift().value(4096) == pytest.approx(math.exp(1.15))
    assert DynamicShift().value((256 + 4096) // 2) == pytest.approx(math.exp((0.5 + 1.15) / 2))


@pytest.mark.parametrize("tokens", [15, 256, 4096, 8192])
def test_the_linear_dynamic_shift_is_that_of_cogview4(tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    scheduler.set_timesteps(sigmas=[0.9, 0.3], mu=calculate_shift(tokens, 256, 0.2, 0.7))
    dynamic = FlowMatching(timesteps="uniform", shift=DynamicShift(kind="linear", base=0.2, max=0.7))
    found = levels(dynamic, torch.tensor([0.9, 0.3]), tokens)
    torch.testing.assert_close(found, scheduler.sigmas[:2], rtol=1e-6, atol=0)


def test_a_linear_shift_has_no_most_tokens() -> None:
    with pytest.raises(ValueError, match="max_tokens: 900 has no effect with kind linear"):
        DynamicShift(kind="linear", max_tokens=900)


def test_the_dynamic_shift_follows_the_number_of_tokens() -> None:
    dynamic = FlowMatching(timesteps="uniform", shift=DynamicShift())
    fixed = FlowMatching(timesteps="uniform", shift=math.exp(1.15))
    torch.testing.assert_close(levels(dynamic, GRID, tokens=4096), levels(fixed, GRID))


# Zero terminal SNR and weights


def test_the_rescaled_schedule_ends_at_no_signal_and_starts_as_before() -> None:
    rescaled = zero_terminal(LINEAR)
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], LINEAR[0])
    assert (rescaled.diff() < 0).all()


def test_the_rescaled_schedule_is_that_of_diffusers() -> None:
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(BETAS), 0)
    torch.testing.assert_close(zero_terminal(LINEAR), expected, rtol=1e-9, atol=1e-12)


def test_the_last_level_at_zero_terminal_snr_is_noise_and_its_target_minus_the_data() -> None:
    u = Edit(u=torch.full((ROWS,), 0.9999))
    _, noisy = seen(VPrediction(zero_terminal_snr=True), toy(alphas_cumprod=LINEAR), u)
    assert torch.equal(noisy.x["x"], noisy.noise["x"])
    assert torch.equal(noisy.target["x"], -noisy.x0["x"])


SNR = torch.tensor([100.0, 20.0, 5.0, 1.0, 0.01])
ALPHA, SIGMA = (SNR / (1 + SNR)).sqrt(), (1 / (1 + SNR)).sqrt()


def test_min_snr_weights_of_epsilon_are_those_of_the_paper() -> None:
    found = Epsilon(min_snr_gamma=5).weight(ALPHA, SIGMA)
    torch.testing.assert_close(found, torch.tensor([0.05, 0.25, 1.0, 1.0, 1.0]))


def test_min_snr_weights_of_v_are_those_of_the_paper() -> None:
    found = VPrediction(min_snr_gamma=5).weight(ALPHA, SIGMA)
    torch.testing.assert_close(found, torch.tensor([5 / 101, 5 / 21, 5 / 6, 1 / 2, 0.01 / 1.01]))


def test_min_snr_weighs_the_error_of_x_0_alike_in_epsilon_and_v() -> None:
    """An error e of x_0 is alpha / sigma e of epsilon, e / sigma of v."""
    by_epsilon = Epsilon(min_snr_gamma=5).weight(ALPHA, SIGMA) * (ALPHA / SIGMA) ** 2
    by_v = VPrediction(min_snr_gamma=5).weight(ALPHA, SIGMA) / SIGMA**2
    torch.testing.assert_close(by_epsilon, SNR.clamp(max=5))
    torch.testing.assert_close(by_v, SNR.clamp(max=5))


def test_min_snr_weights_multiply_those_of_conditions() -> None:
    weight, u = torch.tensor([1.0, 0.0, 2.0]), torch.full((ROWS,), 0.1)
    loss, noisy = seen(Epsilon(min_snr_gamma=5), toy(alphas_cumprod=LINEAR), Edit(weight=weight, u=u))
    snr = (LINEAR[100] / (1 - LINEAR[100])).item()
    means = (noisy.target["x"] ** 2).flatten(1).mean(1)
    assert snr > 5
    assert total(loss) == pytest.approx((means @ weight * 5 / snr).item(), rel=1e-4)


# Kinds of error


ERRORS = torch.tensor([0.0, 0.1, -0.5, 0.5, 2.0, -3.0])


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_huber_is_quadratic_within_delta_and_linear_beyond(delta: float) -> None:
    found = FlowMatching(loss_type="huber", huber_delta=delta).error(ERRORS, torch.zeros(6))
    size = ERRORS.abs()
    torch.testing.assert_close(found, torch.where(size < delta, size**2 / 2, delta * (size - delta / 2)))
    assert found.mean().item() == pytest.approx(
        torch.nn.HuberLoss(delta=delta)(ERRORS, torch.zeros(6)).item()
    )


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_smooth_l1_is_huber_over_beta(beta: float) -> None:
    found = FlowMatching(loss_type="smooth_l1", huber_delta=beta).error(ERRORS, torch.zeros(6))
    size = ERRORS.abs()
    torch.testing.assert_close(found, torch.where(size < beta, size**2 / 2 / beta, size - beta / 2))
    assert found.mean().item() == pytest.approx(
        torch.nn.SmoothL1Loss(beta=beta)(ERRORS, torch.zeros(6)).item()
    )


@every_objective
def test_the_kind_of_error_is_used_by_every_objective(objective: Diffusion, schedule: Tensor | None) -> None:
    options = {"zero_terminal_snr": True} if getattr(objective, "zero_terminal_snr", False) else {}
    huber = type(objective)(loss_type="huber", huber_delta=0.1, **options)
    loss, noisy = seen(huber, toy(alphas_cumprod=schedule))
    size = noisy.target["x"].abs()
    rows = torch.where(size < 0.1, size**2 / 2, 0.1 * (size - 0.05)).flatten(1).mean(1)
    assert total(loss) == pytest.approx(rows.sum().item(), rel=1e-4)


# Refusals


ZERO_TERMINAL = zero_terminal(LINEAR)


@pytest.mark.parametrize(
    ("objective", "schedule", "message"),
    [
        (
            FlowMatching(),
            LINEAR,
            "objective.name: .* variance-preserving schedule; use epsilon or v_prediction",
        ),
        (Epsilon(), None, "objective.name: family toy is a flow model; use flow_matching"),
        (VPrediction(), None, "objective.name: family toy is a flow model; use flow_matching"),
        (Epsilon(), ZERO_TERMINAL, "objective.name: family toy ends at zero signal.*; use v_prediction"),
        (Epsilon(min_snr_gamma=5), ZERO_TERMINAL, "objective.name: family toy ends at zero signal"),
        (
            VPrediction(min_snr_gamma=5),
            ZERO_TERMINAL,
            "objective.min_snr_gamma: at zero terminal SNR .*; leave",
        ),
        (
            VPrediction(min_snr_gamma=5, zero_terminal_snr=True),
            LINEAR,
            "objective.min_snr_gamma: at zero terminal",
        ),
        (Epsilon(min_snr_gamma=0), LINEAR, "objective.min_snr_gamma: 0 is not above 0"),
        (FlowMatching(loss_type="huber", huber_delta=0), None, "objective.huber_delta: 0 is not above 0"),
    ],
)
def test_an_objective_that_cannot_train_a_family_is_refused(
    objective: Diffusion, schedule: Tensor | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        objective.prepare(toy(alphas_cumprod=schedule))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 0.0}, "shift must be above 0, not 0"),
        ({"logit_std": 0.0}, "logit_std must be above 0"),
        ({"mode_scale": 1.8}, r"mode_scale must be in \[-1, 1\.752\], not 1\.8"),
        ({"mode_scale": -1.1}, r"mode_scale must be in \[-1, 1\.752\], not -1\.1"),
    ],
)
def test_values_without_meaning_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowMatching(**options)  # type: ignore[arg-type]


def test_a_diffusion_objective_trains_denoisers_only() -> None:
    with pytest.raises(
        UserError, match="objective: a diffusion objective trains a denoiser; family words is not one"
    ):
        FlowMatching().prepare(SimpleNamespace(name="words"))  # type: ignore[arg-type]
