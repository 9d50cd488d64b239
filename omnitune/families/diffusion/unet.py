"""Families whose core is a UNet of diffusers, trained on a discrete variance-preserving schedule."""

from torch import Tensor, nn

from ...batch import Batch, Streams
from ...data.sizes import Limits
from ..base import LoadRequest, Noisy
from .latents import LatentFamily
from .widen import Ends

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")


class UNetFamily(LatentFamily):
    """One UNet2DConditionModel, an autoencoder of pictures; the text is the family's own."""

    core = "unet"
    adapter_components = ("unet",)
    moments_per_frame = False
    ragged_text = False  # UNets attend to padding
    ends = Ends("conv_in", "conv_out")
    patch = (1, 1, 1)

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        scheduler = self.scheduler()
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type

    @property
    def limits(self) -> Limits:
        """Sizes that every level of the UNet halves without a rest."""
        levels = len(self.core_config["block_out_channels"])
        return Limits(self.vae_scale * 2 ** (levels - 1), 1, most_frames=1)

    @property
    def own_channels(self) -> tuple[int, int]:
        channels = int(self.vae_config["latent_channels"])
        return channels, channels

    def blocks(self, component: str) -> list[nn.Module]:
        if component != self.core:
            return super().blocks(component)
        return [m for m in self.components[component].modules() if type(m).__name__ in BLOCKS]

    def added(self, noisy: Noisy, batch: Batch) -> dict[str, Tensor] | None:
        """What the UNet is given beside the timestep, as `added_cond_kwargs`: pooled texts, sizes."""
        return None

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        """Call the UNet; a branch leaves `down_residuals` and `mid_residual` in `noisy.extra`.

        They are added behind each layer on the way down and in the middle, as a ControlNet gives them.
        """
        output: Tensor = self.components[self.core](
            sample=self.concatenated(noisy).to(self.dtype),  # (B, C, h, w)
            timestep=noisy.fed,
            encoder_hidden_states=batch["prompt_embeds"].to(noisy.fed.device, self.dtype),
            added_cond_kwargs=self.added(noisy, batch),
            down_block_additional_residuals=noisy.extra.get("down_residuals"),
            mid_block_additional_residual=noisy.extra.get("mid_residual"),
            return_dict=False,
        )[0]
        return self.streams(output)
