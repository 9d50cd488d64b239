"""A condition of another package: the clip in grey at half size, in further channels of the denoiser."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from omnitune import Condition, option
from omnitune.batch import Batch
from omnitune.conditions.base import Medium
from omnitune.families.base import Noisy
from omnitune.random import Draw
from omnitune.sampling import Sampling
from omnitune.stages import Stage


def grey(pixels: Tensor) -> Tensor:
    """(B, 3, T, H, W), with half the rows and columns and no colour left."""
    small = interpolate(pixels.mean(1, keepdim=True), scale_factor=(1, 0.5, 0.5))
    return interpolate(small, size=pixels.shape[2:]).expand_as(pixels)


class ControlPipeline(WanPipeline):
    def prepare_latents(self, batch_size: int, num_channels_latents: int, *rest: Any) -> Any:
        """Start from noise in the channels of latents alone: a widened transformer counts more."""
        return super().prepare_latents(batch_size, self.vae.config.z_dim, *rest)


@option
class GreyControl(Condition):
    name: str

    def media(self, family: Any) -> list[Medium]:
        return [Medium("control")]

    def prepare(self, family: Any) -> None:
        family.widen(family.vae_config["z_dim"])

    def stages(self, family: Any) -> list[Stage]:
        def encode(batch: Batch, draw: Draw) -> Batch:
            return {"control_latents": family.normalised_mode(grey(batch["control"]))}

        return [Stage("control", ("vae",), ("control",), ("control_latents",), encode)]

    def before(self, family: Any, noisy: Noisy, batch: Batch, draw: Draw) -> Noisy:
        noisy.add_channels(batch["control_latents"].to(noisy.x0["x"]))
        return noisy

    def sampling(self, family: Any, request: Sampling) -> Sampling:
        frames = torch.from_numpy(request.media["control"]).permute(3, 0, 1, 2)[None]  # (1, 3, T, H, W)
        control = family.normalised_mode(grey(frames / 127.5 - 1))

        def shown(forward: Any) -> Any:
            def call(hidden_states: Tensor, **rest: Any) -> Any:
                return forward(torch.cat([hidden_states, control.to(hidden_states)], 1), **rest)

            return call

        return replace(request, pipeline=ControlPipeline, wrappers=[*request.wrappers, shown])

    def exports(self, family: Any) -> dict[str, Any]:
        return {"control": "grey", "channels": family.vae_config["z_dim"]}
