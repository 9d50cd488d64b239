"""KID: the kernel distance of two sets of pictures (H, W, 3) in uint8."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..progress import say
from ..random import permuted
from .evaluator import Metric
from .features import FeatureNetwork, require
from .media import MediaEvaluator
from .reconstruction import Psnr
from .results import Measure

if TYPE_CHECKING:
    from .features import Pictures

SUBSETS = 100
SUBSET_SIZE = 1000
LEAST_KID = 4
"""Pictures on each side: two subsets of two."""


class Kid(Metric[MediaEvaluator]):
    """Between data and samples; and, where psnr is measured, between data and their reconstructions."""

    needs = ("data", "samples", "features")

    def lack(self) -> str | None:
        items, samples = len(self.evaluator.index.items), len(self.evaluator.wanted)
        if min(items, samples) >= LEAST_KID:
            return None
        return f"needs {LEAST_KID} items and samples, --data has {items} and --samples makes {samples}"

    def measure(self) -> list[Measure]:
        one = self.evaluator
        name, network = f"KID-{one.network.name}", one.network.name
        found = kid_of_features(one.real_features, one.sample_features)
        rows = [replace(found, name=name, network=network)]
        psnr = one.metrics.get("psnr")
        if not isinstance(psnr, Psnr):
            return rows
        name = f"{name} of reconstructions"
        if (items := len(one.real_features)) < 2 * LEAST_KID:
            say(f"{name}: left out, it needs two halves of {LEAST_KID} items and --data has {items}")
            return rows
        decoded = one.network.features(made.picture for made in psnr.reconstructions)
        found = kid_of_pairs(one.real_features, decoded)
        return [*rows, replace(found, name=name, network=network)]


def kid(real: "Pictures", fake: "Pictures", network: FeatureNetwork, seed: int = 0) -> Measure:
    """Kernel distance of two sets of pictures (Binkowski et al. 2018); both take the network's one resize."""
    return kid_of_features(network.features(real), network.features(fake), seed)


def kid_of_features(real: Tensor, fake: Tensor, seed: int = 0) -> Measure:
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
    return Measure(
        "KID", float(mean), float(std), f"deviation over subsets of {size}", len(fake), len(real)
    )  # fmt: skip


def kid_of_pairs(real: Tensor, made: Tensor, seed: int = 0) -> Measure:
    """KID of features (N, D) of pictures and of what was made of each of them, such as reconstructions.

    The estimate needs independent sets, and pairs are none: it would come out too low. So one half of the
    real is compared with what was made of the other half, and the reverse; both are averaged.
    """
    assert len(real) == len(made), (len(real), len(made))
    order = [permuted(i, len(real), "halves", seed) for i in range(len(real))]
    a, b = order[::2], order[1::2]
    one, other = kid_of_features(real[a], made[b], seed), kid_of_features(real[b], made[a], seed)
    assert one.spread is not None
    assert other.spread is not None
    mean, std = (one.value + other.value) / 2, (one.spread + other.spread) / 2
    return replace(one, value=mean, spread=std, count=len(made), num_real=len(real))
