"""Flow matching that also learns in which direction the velocity points."""

import torch.nn.functional as F
from torch import Tensor

from omnitune.batch import Streams
from omnitune.families.base import Denoiser, Noisy
from omnitune.objectives.diffusion import Diffusion
from omnitune.options import option


@option
class Direction(Diffusion):
    """Adds the cosine distance of predicted and true velocity to their error (Yao et al. 2024)."""

    name: str
    strength: float = 1.0

    def path(self, family: Denoiser, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        return family.path(u, x0)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0

    def row_losses(self, noisy: Noisy, prediction: Streams) -> Tensor:
        rows = super().row_losses(noisy, prediction)
        for name, target in noisy.target.items():
            similarity = F.cosine_similarity(prediction[name].float().flatten(1), target.flatten(1))
            rows = rows + self.strength * (1 - similarity)
        return rows
