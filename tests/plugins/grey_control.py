"""A condition of another package: the clip in grey at half size, in further channels of the denoiser."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from omnitune.batch import Batch
from omnitune.conditions.base import Condition, Medium
from omnitune.families.base import Noisy
from omnitune.options import option
from omnitune.random import Draw
from omnitune.sampling import Sampling
from omnitune.stages import Stage


def grey(pixels: Tensor) -> Tensor:
    """(B, 3, T, H, W), with half the rows and columns and no colour left."""
    small = interpolate(pixels.mean(1, keepdim=True), scale_factor=(1, 0.5, 0.5), mode="nearest")
    return interpolate(small, size=pixels.shape[2:], mode="nearest").expand_as(pixels)


class ControlPipeline(WanPipeline):
    """Starts from noise in the autoencoder's channels alone: a widened transformer counts more."""

    def prepare_latents(self, batch_size: int, num_channels_latents: int, *rest: Any, **options: Any) -> Any:
        return super().prepare_latents(batch_size, self.vae.config.z_dim, *rest, **options)


@option
class GreyControl(Condition):
    name: str

    def media(self, family: Any) -> Sequence[Medium]:
        return [Medium("pixels", sampling="never"), Medium("control", training=False)]

    def prepare(self, family: Any) -> None:
        family.widen(family.vae_config["z_dim"])

    def stages(self, family: Any) -> list[Stage]:
        def encode(batch: Batch, draw: Draw) -> Batch:
            return {"control_latents": family.normalised_mode(grey(batch["pixels"]))}

        return [Stage("control", ("vae",), ("pixels",), ("control_latents",), encode)]

    def before(self, family: Any, noisy: Noisy, batch: Batch, draw: Draw) -> Noisy:
        noisy.add_channels(batch["control_latents"].to(noisy.x0["x"]))
        return noisy

    def sampling(self, family: Any, request: Sampling) -> Sampling:
        frames = torch.from_numpy(request.media["control"])  # (T, H, W, 3)
        latents = family.normalised_mode(grey(frames.permute(3, 0, 1, 2)[None] / 127.5 - 1))

        def shown(forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(hidden_states: Tensor, **rest: Any) -> Any:
                beside = latents.to(hidden_states).expand(len(hidden_states), -1, -1, -1, -1)
                return forward(hidden_states=torch.cat([hidden_states, beside], dim=1), **rest)

            return call

        return replace(request, pipeline=ControlPipeline, wrappers=[*request.wrappers, shown])
