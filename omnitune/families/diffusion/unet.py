"""Families whose core is a UNet of diffusers, trained on a discrete variance-preserving schedule."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...batch import Batch, Streams
from ...data.sizes import Limits
from ...random import Draw
from ..base import LoadRequest, Noisy
from .latents import LatentFamily
from .widen import Ends

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")


class UNetFamily(LatentFamily):
    """One UNet2DConditionModel, an autoencoder of pictures, and text of a fixed length."""

    core = "unet"
    networks = ("unet", "vae", "text_encoder")
    tokenizers: ClassVar = {"tokenizer": "clip"}
    adapter_components = ("unet", "text_encoder")
    lora_targets = ("unet.*.attn?.to_*",)
    tasks = ("text-to-image",)
    text_option = None  # the tokenizer's own length
    moments_per_frame = False
    ragged_text = False
    ends = Ends("conv_in", "conv_out")
    patch = (1, 1, 1)

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        scheduler = self.scheduler()
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type
        self.vae_scale = 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def limits(self) -> Limits:
        """Sizes that every level of the UNet halves without a rest."""
        levels = len(self.core_config["block_out_channels"])
        return Limits(self.vae_scale * 2 ** (levels - 1), 1, most_frames=1)

    @property
    def own_channels(self) -> tuple[int, int]:
        channels = int(self.vae_config["latent_channels"])
        return channels, channels

    def affine(self) -> tuple[Any, Any]:
        """The published pipelines know no shift, whatever the VAE's configuration says of one."""
        return 0.0, self.vae_config["scaling_factor"]

    def blocks(self, component: str) -> list[nn.Module]:
        if component != self.core:
            return super().blocks(component)
        return [m for m in self.components[component].modules() if type(m).__name__ in BLOCKS]

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings (B, L, D), padding included: the UNet attends to it, unmasked."""
        encoder: Any = self.components["text_encoder"]
        captions = [str(caption) for caption in batch["caption"]]
        embeds, _ = self.pipeline().encode_prompt(captions, encoder.device, 1, False)
        return {"prompt_embeds": embeds}

    def added(self, noisy: Noisy, batch: Batch) -> dict[str, Tensor] | None:
        """What the UNet is given beside the timestep (`added_cond_kwargs`): pooled texts, sizes; or nothing."""
        return None

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        """Call the UNet; a branch leaves `down_residuals` and `mid_residual` in `noisy.extra`.

        They are added behind each layer on the way down and in the middle, as a ControlNet gives them.
        """
        x = noisy.x["x"]  # (B, C, h, w)
        channels = [noisy.extra["channels"]] if "channels" in noisy.extra else []
        output: Tensor = self.components[self.core](
            sample=torch.cat([x, *channels], dim=1).to(self.dtype),
            timestep=noisy.fed,
            encoder_hidden_states=batch["prompt_embeds"].to(x.device, self.dtype),
            added_cond_kwargs=self.added(noisy, batch),
            down_block_additional_residuals=noisy.extra.get("down_residuals"),
            mid_block_additional_residual=noisy.extra.get("mid_residual"),
            return_dict=False,
        )[0]
        return self.streams(output)
