"""What an autoencoder loses: PSNR and LPIPS of pictures and clips (T, H, W, 3) in uint8 behind it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .data import middle, reconstructed
from .evaluator import Metric
from .features import load_state, read_state, require
from .media import MediaEvaluator
from .results import Measure

if TYPE_CHECKING:
    from ..data.media import Pixels

    Distance = Callable[[Pixels, Pixels], float]

LEAST_MSE = 1e-3
"""Squared levels; caps PSNR at 78.1 dB, which equal pictures get."""


@dataclass(frozen=True)
class Reconstruction:
    """An item behind the autoencoder."""

    frames: int
    psnr: float
    lpips: float | None
    picture: "Pixels"
    """Its middle frame."""


class Psnr(Metric[MediaEvaluator]):
    """Of the data behind the autoencoder; and LPIPS where there are weights for it."""

    needs, reads = ("data", "autoencoder"), ("lpips",)

    def load(self) -> None:
        file = self.evaluator.request.lpips
        self.lpips = load_lpips(file, str(self.evaluator.mesh.device)) if file else None

    @cached_property
    def reconstructions(self) -> list[Reconstruction]:
        one, found = self.evaluator, []
        name = one.family.autoencoder
        loaded = name in one.family.components
        one.family.fetch([name])
        for i in range(len(one.index.items)):
            real = one.real(i)
            decoded = reconstructed(one.family, real)
            distance = self.lpips(real, decoded) if self.lpips else None
            found.append(Reconstruction(len(real), psnr(real, decoded), distance, middle(decoded)))
        if not loaded:
            one.family.drop([name])
        return found

    def measure(self) -> list[Measure]:
        found = []
        for kind, several in (("pictures", False), ("clips", True)):
            mine = [one for one in self.reconstructions if (one.frames > 1) == several]
            found += over_items(f"PSNR {kind} (dB)", [one.psnr for one in mine])
            found += over_items(f"LPIPS {kind}", [one.lpips for one in mine if one.lpips is not None])
        return found


def over_items(name: str, values: Sequence[float]) -> list[Measure]:
    """The mean, if there is something to average."""
    if not values:
        return []
    return [Measure(name, float(np.mean(values)), float(np.std(values)), "deviation over items", len(values))]


def psnr(real: "Pixels", other: "Pixels") -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pictures or clips of one size; equal ones get 78.1."""
    mse = float(np.mean((real.astype(np.float64) - other.astype(np.float64)) ** 2))
    return float(10 * math.log10(255**2 / max(mse, LEAST_MSE)))


def load_lpips(file: Path, device: str = "cpu") -> "Distance":
    """LPIPS (Zhang et al. 2018), version 0.1: the mean over frames of clips, 32 pixels a side at least.

    It stands on torchvision's AlexNet, VGG16 or SqueezeNet 1.1, whichever the file holds; torchmetrics ships
    the layers behind it.
    """
    require("torchmetrics", "torchmetrics", "LPIPS")
    from torchmetrics.functional.image.lpips import _LPIPS

    state = {
        n.removeprefix("features."): v
        for n, v in read_state(file, "--lpips").items()
        if n.startswith("features.")
    }
    name = _backbone(state, file)
    module = _LPIPS(net=name, pnet_rand=True).to(device)
    # Slices keep torchvision's numbers: slice2.3.weight, or slices.1.3.weight, is features.3.weight.
    names = {
        own: own.split(".", 2 if own.startswith("slices.") else 1)[-1] for own in module.net.state_dict()
    }
    if missing := sorted(set(names.values()) - state.keys()):
        raise UserError(
            f"--lpips: {file} lacks features.{missing[0]}; give torchvision's {name} weights whole"
        )
    load_state(module.net, {own: state[theirs] for own, theirs in names.items()}, file, "--lpips")
    module.eval()

    def distance(real: "Pixels", other: "Pixels") -> float:
        a, b = (torch.from_numpy(v.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (real, other))
        with torch.no_grad():
            found: Tensor = module(a.to(device), b.to(device))
        return float(found.mean())

    return distance


def _backbone(state: dict[str, Tensor], file: Path) -> Literal["alex", "vgg", "squeeze"]:
    if "3.squeeze.weight" in state:
        return "squeeze"
    first = state.get("0.weight")
    if first is not None and first.shape[-1] == 11:
        return "alex"
    if first is not None and first.shape[-1] == 3 and "28.weight" in state:
        return "vgg"
    raise UserError(f"--lpips: {file} is not torchvision's alexnet, vgg16 or squeezenet1_1; give one of them")
