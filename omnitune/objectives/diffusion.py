"""Diffusion objectives: a noise path, what is predicted, how levels are drawn, how errors are weighed.

Shapes: B rows, then (C, H, W) or (C, T, H, W). u is the noise level in [0, 1]: 0 is data, 1 is noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from ..batch import Batch, LossSum, Streams, on_device
from ..conditions.base import Condition
from ..errors import UserError
from ..families.base import Denoiser, Noisy, StreamLevel
from ..lazily import torch
from ..options import check_ranges, option
from ..random import Draw

if TYPE_CHECKING:
    from torch import Tensor

    from ..families.base import Family

Amount = TypeVar("Amount", float, "Tensor")
Loss = Literal["mse", "huber", "smooth_l1"]


def expand(v: Tensor, like: Tensor) -> Tensor:
    """Append dims of 1 until v broadcasts to `like`."""
    return v.view(*v.shape, *[1] * (like.ndim - v.ndim))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply factors of rows, of which either may differ within a row."""
    wider = max(a, b, key=lambda v: v.ndim)
    return expand(a, wider) * expand(b, wider)


def shifted(u: Amount, shift: float) -> Amount:
    """s u / (1 + (s - 1) u), of which a shift by 1 / s is the inverse."""
    return shift * u / (1 + (shift - 1) * u)


@option
class DynamicShift:
    """A shift that grows with the number of tokens, as some models are sampled with.

    exp(mu), mu linear in the token count (`calculate_shift` of diffusers' pipelines).
    """

    kind: Literal["exponential", "linear"] = "exponential"
    """`time_shift_type` of the published scheduler: of `linear` the shift is max sqrt(tokens / base_tokens) +
    base."""
    base: float = 0.5
    max: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.max_tokens <= self.base_tokens:
            raise ValueError(
                f"max_tokens must be above base_tokens ({self.base_tokens}), not {self.max_tokens}"
            )
        if self.kind == "linear" and self.max_tokens != DynamicShift.max_tokens:
            raise ValueError(f"max_tokens: {self.max_tokens} has no effect with kind linear; remove it")

    def value(self, tokens: int) -> float:
        if self.kind == "linear":
            return self.max * math.sqrt(tokens / self.base_tokens) + self.base
        slope = (self.max - self.base) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base + slope * (tokens - self.base_tokens))


@option
class Diffusion(ABC):
    """Noise the latents, let the model predict, compare. Subclasses state levels, path, target and weight."""

    held_out_levels: ClassVar[int] = 8

    name: str
    loss_type: Loss = "mse"
    huber_delta: float = 1.0
    """Error at which huber and smooth_l1 turn linear."""

    def prepare(self, family: "Family") -> None:
        if not isinstance(family, Denoiser):
            raise UserError(
                f"objective: a diffusion objective trains a denoiser; family {family.name} is not one"
            )
        if self.huber_delta <= 0:
            raise UserError(f"objective.huber_delta: {self.huber_delta} is not above 0")
        if family.experts and type(self).expert_levels is Diffusion.expert_levels:
            raise UserError(
                f"objective.name: {self.name} draws no levels for the experts of {family.name}; give it "
                "expert_levels, or take flow_matching"
            )
        self.check_schedule(family)

    def check_schedule(self, family: Denoiser) -> None:  # noqa: B027  # most fit all
        """Raise UserError for a family that was pretrained on a path of another kind."""

    def units(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        return {"samples": 1}

    def levels(self, family: Denoiser, x0: Streams, draw: Draw, purpose: str = "timestep") -> Tensor:
        """Draw u, (B,)."""
        return draw.uniform(purpose)

    def expert_levels(self, family: Denoiser, x0: Streams, draw: Draw) -> tuple[Tensor, str]:
        """Draw u, (B,), in the range of one of the family's experts, to which the whole global batch goes."""
        raise AssertionError(f"prepare refuses {family.name}, which has experts")

    @abstractmethod
    def path(self, family: Denoiser, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """alpha and sigma of x_t = alpha x_0 + sigma noise, and the timestep that is fed; each like u."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the model predicts."""

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)

    def noised(self, family: Denoiser, noisy: Noisy) -> Noisy:
        """Fill in x, fed and target from x0, noise and u; in fp32 whatever the model's dtype."""
        for name, level in noisy.own.items():
            stream = {name: noisy.x0[name]}
            level.fed, level.weight = self._mix(family, noisy, stream, level.u, level.weight)
        if others := {name: x0 for name, x0 in noisy.x0.items() if name not in noisy.own}:
            noisy.fed, noisy.weight = self._mix(family, noisy, others, noisy.u, noisy.weight)
        return noisy

    def _mix(
        self, family: Denoiser, noisy: Noisy, streams: Streams, u: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Fill in x and target of streams of one level; returns the timestep fed and the errors' factor."""
        alpha, sigma, fed = self.path(family, u, streams)
        for name, x0 in streams.items():
            a, s = expand(alpha, x0), expand(sigma, x0)
            noisy.x[name] = a * x0 + s * noisy.noise[name]
            noisy.target[name] = self.target(x0, noisy.noise[name], a, s)
        factor = self.weight(alpha, sigma)
        return fed, factor if weight is None else product(weight, factor)

    def start(self, family: Denoiser, batch: Batch, draw: Draw) -> Noisy:
        x0: Streams = {name: value.float() for name, value in batch["x0"].items()}
        noise = {name: draw.normal(_purpose("noise", name), value.shape[1:]) for name, value in x0.items()}
        mask = batch.get("mask")
        own = {name: x0[name] for name in family.streams_with_own_level if name in x0}
        others = {name: value for name, value in x0.items() if name not in own}
        expert: str | None = None
        if family.experts:
            u, expert = self.expert_levels(family, others, draw)
        else:
            u = self.levels(family, others, draw)
        levels = {
            name: StreamLevel(self.levels(family, {name: value}, draw, _purpose("timestep", name)))
            for name, value in own.items()
        }
        return Noisy(x0, noise, u, expert, mask=mask, own=levels)

    def loss(
        self, family: Denoiser, batch: Batch, draw: Draw, conditions: Sequence[Condition] = ()
    ) -> LossSum:
        noisy = self.start(family, batch, draw)
        for condition in conditions:
            noisy = condition.before(family, noisy, batch, draw)
            assert noisy is not None, f"condition {condition.name}: before returned nothing; return noisy"
        noisy = self.noised(family, noisy)

        predict: Callable[[], Streams] = partial(family.denoise, noisy, batch)
        for condition in conditions:
            predict = partial(condition.around, predict, family, noisy, batch, draw)
        rows = self.row_losses(noisy, predict())
        row_weight, u = batch["row_weight"], _of_rows(noisy.u)
        metrics = {"u": u @ row_weight}
        metrics |= {f"u.{name}": _of_rows(level.u) @ row_weight for name, level in noisy.own.items()}
        return LossSum({"samples": rows @ row_weight}, {"samples": rows}, u, metrics)

    def for_evaluation(self) -> Self:
        return self

    def row_losses(self, noisy: Noisy, prediction: Streams) -> Tensor:
        """(B,): each row's mean error over its unmasked elements, summed over streams."""
        rows: Tensor | None = None
        for name, target in noisy.target.items():
            error = self.error(prediction[name].float(), target)
            weight, counted = noisy.at(name).weight, noisy.at(name).mask
            if weight is not None:
                error = error * expand(weight, error)
            if counted is None:
                mean = error.flatten(1).mean(1)
            else:
                mask = expand(counted.to(error), error).expand_as(error)
                mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
            rows = mean if rows is None else rows + mean
        assert rows is not None, "the batch holds no stream"
        return rows

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.loss_type == "mse":
            return (prediction - target) ** 2
        functional = torch.nn.functional
        if self.loss_type == "huber":
            return functional.huber_loss(prediction, target, reduction="none", delta=self.huber_delta)
        return functional.smooth_l1_loss(prediction, target, reduction="none", beta=self.huber_delta)


@option
class FlowMatching(Diffusion):
    """Rectified flow: a straight path from data to noise, and its velocity as the target.

    Liu et al. 2022, "Flow straight and fast"; Lipman et al. 2022, "Flow matching for generative modeling".
    """

    name: Literal["flow_matching"] = "flow_matching"
    timesteps: Literal["uniform", "logit_normal", "mode", "cosmap"] = "logit_normal"
    """Distribution of the noise level before the shift (Esser et al. 2024, section 3.1)."""
    logit_mean: float = 0.0
    """Of `logit_normal`; positive favours high noise."""
    logit_std: float = 1.0
    mode_scale: float = 1.29
    """Of `mode`, -1 to 2 / (pi - 2): positive favours the middle."""
    shift: float | DynamicShift = 1.0
    """s u / (1 + (s - 1) u): above 1 moves levels towards noise, as large pictures need. Or {base, max}."""

    def __post_init__(self) -> None:
        if not isinstance(self.shift, DynamicShift) and self.shift <= 0:
            raise ValueError(f"shift must be above 0, not {self.shift}")
        check_ranges(self, logit_std="(0, inf)")
        if not -1 <= self.mode_scale <= 2 / (math.pi - 2):
            raise ValueError(f"mode_scale must be in [-1, {2 / (math.pi - 2):.3f}], not {self.mode_scale}")

    def check_schedule(self, family: Denoiser) -> None:
        if family.alphas_cumprod is not None:
            raise UserError(
                f"objective.name: family {family.name} was pretrained on a variance-preserving schedule; "
                "use epsilon or v_prediction"
            )

    def levels(self, family: Denoiser, x0: Streams, draw: Draw, purpose: str = "timestep") -> Tensor:
        return shifted(self.unshifted(draw, purpose), self.shift_of(family, x0))

    def shift_of(self, family: Denoiser, x0: Streams) -> float:
        return self.shift.value(family.num_tokens(x0)) if isinstance(self.shift, DynamicShift) else self.shift

    def expert_levels(self, family: Denoiser, x0: Streams, draw: Draw) -> tuple[Tensor, str]:
        shift = self.shift_of(family, x0)
        names = sorted(family.experts, key=lambda name: family.experts[name])
        ends = [[self.cumulative(shifted(u, 1 / shift)) for u in family.experts[name]] for name in names]
        masses = torch.tensor([abs(high - low) for low, high in ends], dtype=torch.float64)
        edges = [0.0, *(masses / masses.sum()).cumsum(0)[:-1].tolist(), 1.0]
        cell, q = draw.within("timestep", edges)
        low, high = ends[cell]
        share = (q - edges[cell]) / (edges[cell + 1] - edges[cell])
        return shifted(self.quantile(low + share * (high - low)), shift), names[cell]

    def unshifted(self, draw: Draw, purpose: str) -> Tensor:
        if self.timesteps == "logit_normal":
            return torch.sigmoid(self.logit_mean + self.logit_std * draw.normal(purpose))
        return self.quantile(draw.uniform(purpose))

    def quantile(self, p: Tensor) -> Tensor:
        """The level, before the shift, below which a share p of all lies; of `mode` above which."""
        if self.timesteps == "logit_normal":
            return torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(p))
        if self.timesteps == "mode":  # Eq. 20 of Esser et al. 2024
            return 1 - p - self.mode_scale * (torch.cos(math.pi / 2 * p) ** 2 - 1 + p)
        if self.timesteps == "cosmap":  # Eq. 21 of Esser et al. 2024
            return 1 - 1 / (torch.tan(math.pi / 2 * p) + 1)
        return p

    @lru_cache  # noqa: B019  # of a frozen value
    def cumulative(self, u: float) -> float:
        """The inverse of `quantile`, by bisection."""
        low, high = 0.0, 1.0
        falls = self.timesteps == "mode"
        for _ in range(60):
            middle = (low + high) / 2
            above = bool(self.quantile(torch.tensor(middle, dtype=torch.float64)) > u)
            low, high = (low, middle) if above != falls else (middle, high)
        return (low + high) / 2

    def path(self, family: Denoiser, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        return family.path(u, x0)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0


@option
class VariancePreserving(Diffusion):
    """The discrete schedule that a family was pretrained on, with optional min-SNR weights."""

    name: str
    min_snr_gamma: float | None = None

    def check_schedule(self, family: Denoiser) -> None:
        if family.alphas_cumprod is None:
            raise UserError(f"objective.name: family {family.name} is a flow model; use flow_matching")
        if family.prediction_type not in (None, self.name):
            raise UserError(
                f"objective.name: {self.name}, but the scheduler of {family.request.path} says "
                f"{family.prediction_type}, and so its pipeline reads what is predicted; use that"
            )
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise UserError(f"objective.min_snr_gamma: {self.min_snr_gamma} is not above 0")

    def schedule(self, family: Denoiser) -> Tensor:
        assert family.alphas_cumprod is not None
        return family.alphas_cumprod

    def path(self, family: Denoiser, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        a = self.schedule(family)
        step = (u * len(a)).long().clamp(max=len(a) - 1)
        alpha, sigma = on_device(torch.stack([a, 1 - a]).sqrt().float(), u.device)[:, step]
        return alpha, sigma, step

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Weigh errors of x_0 by min(SNR, gamma), Hang et al. 2023, whatever is predicted."""
        if self.min_snr_gamma is None:
            return torch.ones_like(alpha)
        snr = (alpha / sigma) ** 2
        return snr.clamp(max=self.min_snr_gamma) / self.error_of_x0(snr)

    @abstractmethod
    def error_of_x0(self, snr: Tensor) -> Tensor:
        """By how much the squared error of the prediction exceeds that of x_0."""


@option
class Epsilon(VariancePreserving):
    """Predict the noise (Ho et al. 2020)."""

    name: Literal["epsilon"] = "epsilon"
    min_snr_gamma: float | None = None
    """Weigh by min(SNR, gamma) / SNR; 5 is usual."""

    def check_schedule(self, family: Denoiser) -> None:
        VariancePreserving.check_schedule(self, family)
        if self.schedule(family)[-1] == 0:
            raise UserError(
                f"objective.name: family {family.name} ends at zero signal, where noise says "
                "nothing; use v_prediction"
            )

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def error_of_x0(self, snr: Tensor) -> Tensor:
        return snr


@option
class VPrediction(VariancePreserving):
    """Predict v = alpha noise - sigma x_0 (Salimans and Ho 2022)."""

    name: Literal["v_prediction"] = "v_prediction"
    min_snr_gamma: float | None = None
    """Weigh by min(SNR, gamma) / (SNR + 1); 5 is usual. At zero SNR the weight is 0: refused there."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to end at pure noise (Lin et al. 2023, algorithm 1)."""

    def schedule(self, family: Denoiser) -> Tensor:
        a = VariancePreserving.schedule(self, family)
        return zero_terminal(a) if self.zero_terminal_snr else a

    def check_schedule(self, family: Denoiser) -> None:
        VariancePreserving.check_schedule(self, family)
        if self.min_snr_gamma is not None and self.schedule(family)[-1] == 0:
            raise UserError(
                "objective.min_snr_gamma: at zero terminal SNR its weight is 0 and the last "
                "level never trains; "
                "leave min_snr_gamma out"
            )

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x0

    def error_of_x0(self, snr: Tensor) -> Tensor:
        return snr + 1


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod): the last is 0, the first unchanged (Lin et al. 2023, alg. 1)."""
    root = alphas_cumprod.double().sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def _of_rows(u: Tensor) -> Tensor:
    """(B,): the noisiest level of each row, for parts that are given clean have none."""
    return u.flatten(1).amax(1) if u.ndim > 1 else u


def _purpose(kind: str, stream: str) -> str:
    return kind if stream == "x" else f"{kind}.{stream}"
