"""KID, PSNR, LPIPS and motion, of pictures (H, W, 3) and clips (T, H, W, 3) in uint8."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..random import permuted
from .features import FeatureNetwork, load_state, read_state, require

if TYPE_CHECKING:
    from ..data.media import Pixels
    from .features import Pictures

SUBSETS = 100
SUBSET_SIZE = 1000
LEAST_KID = 4
"""Pictures on each side: two subsets of two."""
LEAST_MSE = 1e-3
"""Squared levels; caps PSNR at 78.1 dB, which equal pictures get."""
STATIC = 0.5
"""Levels of 0..255: clips whose frames differ less on average stand still; compression alone stays below."""
BACKBONES: dict[str, Any] = {"Alex": "alex", "VGG": "vgg", "Squeeze": "squeeze"}


@dataclass(frozen=True)
class Distance:
    """An estimate over random subsets."""

    mean: float
    std: float
    """Over subsets."""
    num_real: int
    num_fake: int
    subset_size: int


def kid(real: "Pictures", fake: "Pictures", network: FeatureNetwork, seed: int = 0) -> Distance:
    """Kernel distance of two sets of pictures (Binkowski et al. 2018); both take the network's one resize."""
    return kid_of_features(network.features(real), network.features(fake), seed)


def kid_of_features(real: Tensor, fake: Tensor, seed: int = 0) -> Distance:
    """KID of features (N, D), unbiased at any N, over 100 random subsets.

    A subset is half of the smaller set, and at most 1000, as the literature has it: subsets as large as the
    set would all be the same and their deviation 0.
    """
    require("torchmetrics", "torchmetrics", "KID")
    from torchmetrics.image.kid import KernelInceptionDistance

    smaller = min(len(real), len(fake))
    if smaller < LEAST_KID:
        raise UserError(
            f"KID: {len(real)} real and {len(fake)} generated pictures; {LEAST_KID} of each are needed"
        )
    size = min(SUBSET_SIZE, smaller // 2)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # "will save all extracted features in buffer"
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=SUBSETS, subset_size=size)
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
        mean, std = metric.compute()
    return Distance(float(mean), float(std), len(real), len(fake), size)


def kid_of_pairs(real: Tensor, made: Tensor, seed: int = 0) -> Distance:
    """KID of features (N, D) of pictures and of what was made of each of them, such as reconstructions.

    The estimate needs independent sets, and pairs are none: it would come out too low. So one half of the
    real is compared with what was made of the other half, and the reverse; both are averaged.
    """
    assert len(real) == len(made), (len(real), len(made))
    order = [permuted(i, len(real), "halves", seed) for i in range(len(real))]
    a, b = order[::2], order[1::2]
    one, other = kid_of_features(real[a], made[b], seed), kid_of_features(real[b], made[a], seed)
    mean, std = (one.mean + other.mean) / 2, (one.std + other.std) / 2
    return Distance(mean, std, len(real), len(made), one.subset_size)


def psnr(real: "Pixels", other: "Pixels") -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pictures or clips of one size; equal ones get 78.1."""
    mse = float(np.mean((real.astype(np.float64) - other.astype(np.float64)) ** 2))
    return float(10 * math.log10(255**2 / max(mse, LEAST_MSE)))


@dataclass(frozen=True)
class Motion:
    """How frames of clips differ from the next, in levels of 0..255."""

    mean: float
    """Mean absolute difference of adjacent frames, averaged over clips."""
    std: float
    """Over clips, of that difference."""
    flicker: float
    """Standard deviation of that difference over time, averaged over clips: 0 is steady motion."""
    static: float
    """Share of clips that stand still."""
    num_clips: int


def motion(clips: "Iterable[Pixels]") -> Motion:
    """Frame-difference statistics of clips of two frames or more; compare clips of one rate and size only."""
    steps = [_steps(clip) for clip in clips]
    if not steps:
        raise UserError("motion: there is no clip to measure")
    means = np.array([step.mean() for step in steps])
    flicker = np.mean([step.std() for step in steps])
    return Motion(
        float(means.mean()), float(means.std()), float(flicker), float((means < STATIC).mean()), len(steps)
    )


def _steps(clip: "Pixels") -> Any:
    """(T - 1,): the mean absolute difference of each frame to the next."""
    if len(clip) < 2:
        raise UserError("motion: a clip has one frame; pictures do not move")
    return np.abs(np.diff(clip.astype(np.float32), axis=0)).mean((1, 2, 3))


@dataclass(frozen=True)
class Lpips:
    """Perceptual distance of two pictures (Zhang et al. 2018), version 0.1."""

    name: str
    module: torch.nn.Module

    def distance(self, real: "Pixels", other: "Pixels") -> float:
        """Mean over the frames of two clips (T, H, W, 3) of one size, 32 pixels a side at least."""
        a, b = (torch.from_numpy(v.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (real, other))
        device = next(self.module.parameters()).device
        with torch.no_grad():
            found: Tensor = self.module(a.to(device), b.to(device))
        return float(found.mean())


def load_lpips(file: Path, device: str = "cpu") -> Lpips:
    """LPIPS on torchvision's AlexNet, VGG16 or SqueezeNet 1.1, whichever the file holds.

    torchmetrics ships the layers behind it, for version 0.1 of the paper's code.
    """
    require("torchmetrics", "torchmetrics", "LPIPS")
    from torchmetrics.functional.image.lpips import _LPIPS

    state = {
        n.removeprefix("features."): v
        for n, v in read_state(file, "--lpips").items()
        if n.startswith("features.")
    }
    name = _backbone(state, file)
    module = _LPIPS(net=BACKBONES[name], pnet_rand=True)
    # Slices keep torchvision's numbers: slice2.3.weight, or slices.1.3.weight, is features.3.weight.
    names = {
        own: own.split(".", 2 if own.startswith("slices.") else 1)[-1] for own in module.net.state_dict()
    }
    if missing := sorted(set(names.values()) - state.keys()):
        raise UserError(
            f"--lpips: {file} lacks features.{missing[0]}; give torchvision's {name} weights whole"
        )
    load_state(module.net, {own: state[theirs] for own, theirs in names.items()}, file, "--lpips")
    return Lpips(f"LPIPS-{name}", module.eval().to(device))


def _backbone(state: dict[str, Tensor], file: Path) -> str:
    if "3.squeeze.weight" in state:
        return "Squeeze"
    first = state.get("0.weight")
    if first is not None and first.shape[-1] == 11:
        return "Alex"
    if first is not None and first.shape[-1] == 3 and "28.weight" in state:
        return "VGG"
    raise UserError(f"--lpips: {file} is not torchvision's alexnet, vgg16 or squeezenet1_1; give one of them")
