"""KID: the kernel distance of two sets of pictures (H, W, 3) in uint8."""

import warnings
from dataclasses import dataclass
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
        found = [kid_of_features(one.real_features, one.sample_features).measure(name, network)]
        psnr = one.metrics.get("psnr")
        if not isinstance(psnr, Psnr):
            return found
        if (items := len(one.real_features)) < 2 * LEAST_KID:
            say(
                f"{name} of reconstructions: left out, it needs two halves of {LEAST_KID} items and --data "
                f"has {items}"
            )
            return found
        decoded = one.network.features(made.picture for made in psnr.reconstructions)
        distance = kid_of_pairs(one.real_features, decoded)
        return [*found, distance.measure(f"{name} of reconstructions", network)]


@dataclass(frozen=True)
class Distance:
    """An estimate over random subsets."""

    mean: float
    std: float
    """Over subsets."""
    num_real: int
    num_fake: int
    subset_size: int

    def measure(self, name: str, network: str) -> Measure:
        """Make the row of it."""
        return Measure(
            name, self.mean, self.std, f"deviation over subsets of {self.subset_size}", self.num_fake,
            self.num_real, network=network,
        )  # fmt: skip


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
