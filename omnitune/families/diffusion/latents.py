"""Families with an autoencoder in latent space: pixels to moments to x0, and given frames."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...batch import Batch, Streams, on_device
from ...data.sizes import Limits
from ...errors import UserError
from ...random import Draw
from ...stages import Stage
from ..base import LoadRequest, Noisy
from .pipeline import DiffusersFamily
from .widen import Ends, widen_to


def given_frames(batch: Batch) -> list[Tensor]:
    """Those of a clip's ends that a stage needs, (B, 3, 1, H, W) each: the first, the last, or both."""
    return [batch[name] for name in ("first_frame", "last_frame") if name in batch]


class LatentFamily(DiffusersFamily):
    """Stages `moments` (cacheable) and `latents` (draws the posterior), and the text stage of the family."""

    moments_per_frame: ClassVar[bool] = True
    """Whether the autoencoder knows time: its latents are (B, C, T, h, w), else (B, C, h, w)."""

    ragged_text: ClassVar[bool] = True
    """Whether texts are stored without padding: the denoiser is fed zeros or a mask behind them."""

    ends: ClassVar[Ends | None] = None
    """Where channels enter and leave the cores; None: they cannot be widened."""

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        self.vae_config, self.core_config = self.files.config("vae"), self.files.config(self.core)
        self.further = (0, 0)
        """Channels in and out that `widen` asked for, beside `own_channels`."""
        self.guided = bool(self.core_config.get("guidance_embeds"))
        """Whether the model is distilled to take the scale of guidance as an input."""
        stated, default = (getattr(given, "guidance", None) for given in (self.options, self.Options()))
        if not self.guided and stated != default:
            raise UserError(
                f"model.options.guidance: {stated:g} has no effect, {self.files.path} takes no guidance; "
                "remove it"
            )

    @property
    def limits(self) -> Limits:
        """Whole tokens of one picture; an autoencoder that knows time has limits of its own."""
        if self.moments_per_frame:
            return super().limits
        return Limits(self.vae_scale * self.patch[1], 1, most_frames=1)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns that make one token."""
        side = self.core_config["patch_size"]
        return self.core_config.get("patch_size_t") or 1, side, side

    def num_tokens(self, x0: Streams) -> int:
        sizes = x0["x"].shape[2:]
        return prod(size // patch for size, patch in zip(sizes, self.patch[-len(sizes) :], strict=True))

    @property
    def own_stages(self) -> list[Stage]:
        return [
            Stage("moments", ("vae",), ("pixels",), ("moments",), self.encode_pixels),
            Stage("latents", (), ("moments",), ("x0",), self.draw_latents, draws=("posterior",)),
            *self.text_stages(),
        ]

    def text_stages(self) -> list[Stage]:
        """From captions to what the text encoders give."""
        return [self.text_stage("text_encoder", "caption")]

    def text_stage(self, encoder: str, *needs: str) -> Stage:
        return Stage(
            "text", (encoder,), needs, ("prompt_embeds",), self.encode_text,
            ragged=("prompt_embeds",) if self.ragged_text else (),
            options={self.text_option: self.text_length} if self.text_option else {},
        )  # fmt: skip

    def encode_prompts(self, captions: Sequence[str]) -> Any:
        """What the published pipeline makes of captions, without negative ones."""
        encoder: Any = self.components["text_encoder"]
        return self.pipeline().encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=encoder.device,
        )

    def pooled_stage(self, encoder: str) -> Stage:
        """From captions to CLIP's embeddings, (B, D), of its first 77 tokens."""

        def encode(batch: Batch, draw: Draw) -> Batch:
            module: Any = self.components[encoder]
            captions = [str(caption) for caption in batch["caption"]]
            return {"pooled_embeds": self.pipeline()._get_clip_prompt_embeds(captions, device=module.device)}

        return Stage("pooled", (encoder,), ("caption",), ("pooled_embeds",), encode)

    @abstractmethod
    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings as the denoiser is fed them, without padding where it is ragged."""

    def affine(self) -> tuple[Any, Any]:
        """Shift and scale of x0 = (z - shift) * scale: numbers, or a list of one for each channel.

        Most published pipelines know no shift, whatever the VAE's configuration says of one.
        """
        return 0.0, self.vae_config["scaling_factor"]

    @property
    def vae_scale(self) -> int:
        """Pixels a side of a latent, for autoencoders that halve at each level but the last."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @staticmethod
    def concatenated(noisy: Noisy) -> Tensor:
        """Noisy latents (B, C, ...) with the further channels of conditions behind their own."""
        channels = [noisy.extra["channels"]] if "channels" in noisy.extra else []
        return torch.cat([noisy.x["x"], *channels], dim=1)

    @property
    def own_channels(self) -> tuple[int, int]:
        """Channels that the family itself feeds the core, and reads."""
        inputs = int(self.core_config["in_channels"])
        return inputs, int(self.core_config.get("out_channels") or inputs)

    def widen(self, inputs: int, outputs: int = 0) -> None:
        if self.ends is None:
            return super().widen(inputs, outputs)
        if min(inputs, outputs) < 0 or not inputs + outputs:
            raise UserError(f"conditions: widen({inputs}, {outputs}) adds no channels; give numbers above 0")
        self.further = (self.further[0] + inputs, self.further[1] + outputs)
        sizes = [own + further for own, further in zip(self.own_channels, self.further, strict=True)]
        for core in self.cores:
            self.change(core, partial(widen_to, ends=self.ends, inputs=sizes[0], outputs=sizes[1]))

    def streams(self, output: Tensor) -> Streams:
        """What a widened core gives, (B, C, ...), as `x` and what is `further`."""
        own = self.own_channels[1]
        return {"x": output[:, :own], "further": output[:, own:]} if self.further[1] else {"x": output}

    # Latents

    def encode_pixels(self, batch: Batch, draw: Draw) -> Batch:
        """Pixels (B, 3, T, H, W) in [-1, 1] to the posterior's mean and log-variance, (B, 2C, [T',] h, w)."""
        return {"moments": self.posterior(batch["pixels"]).parameters}

    def posterior(self, pixels: Tensor) -> Any:
        """The autoencoder's distribution of latents."""
        vae: Any = self.components["vae"]
        pixels = pixels.to(vae.device, vae.dtype)
        return vae.encode(pixels if self.moments_per_frame else pixels.squeeze(2)).latent_dist

    def draw_latents(self, batch: Batch, draw: Draw) -> Batch:
        """Sample the posterior, then normalise: the deviation scales too."""
        return {"x0": {"x": self.normalised(self.sampled(batch["moments"], draw, "posterior"))}}

    @staticmethod
    def sampled(moments: Tensor, draw: Draw, purpose: str) -> Tensor:
        mean, logvar = moments.float().chunk(2, dim=1)
        std = (0.5 * logvar.clamp(-30, 20)).exp()  # diffusers' DiagonalGaussianDistribution clamps alike
        return mean + std * draw.normal(purpose, mean.shape[1:])

    def normalised(self, z: Tensor) -> Tensor:
        """Latents (B, C, ...) of the autoencoder as the denoiser knows them, in fp32."""
        shift, scale = (
            on_device(torch.as_tensor(value), z.device, torch.float32).view(-1, *[1] * (z.ndim - 2))
            for value in self.affine()
        )
        return (z.float() - shift) * scale

    def normalised_mode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels at the posterior's mode, as the pipelines take those of given frames."""
        return self.normalised(self.posterior(pixels).mode())

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Send pixels (B, 3, T, H, W) in [-1, 1] through the VAE and back, by the mode of the posterior."""
        vae: Any = self.components["vae"]
        decoded: Tensor = vae.decode(self.posterior(pixels).mode()).sample.float().clamp(-1, 1)
        return decoded if decoded.ndim == 5 else decoded.unsqueeze(2)

    # Given frames

    def missing_condition(self) -> str | None:
        if not self.frames_required or any("_frame" in medium.name for medium in self.media):
            return None
        return (
            f"conditions: {self.files.path} is an image-to-video checkpoint; add "
            f"{{name: frame_conditioning, frames: {self.takes[0]}}}"
        )

    @staticmethod
    def first_frame_clean(noisy: Noisy, given: Tensor) -> Noisy:
        """Give rows their first latent frame without noise and leave it out of the average.

        `given` (B,) is 1 for these rows. A picture is left as it is: all of it would be given.
        """
        x0 = noisy.x0["x"]  # (B, C, T, h, w)
        if x0.shape[2] == 1:
            return noisy
        clean = x0.new_zeros(len(x0), 1, x0.shape[2], 1, 1)
        clean[:, :, 0] = given.view(-1, 1, 1, 1)
        noisy.u = noisy.u.view(-1, 1, 1, 1, 1) * (1 - clean)
        noisy.mask = 1 - clean
        return noisy

    @staticmethod
    def as_pictures(frame: Tensor) -> list[Any]:
        """One frame of each clip, (B, 3, 1, H, W) in [-1, 1], as PIL pictures, for image processors."""
        from PIL import Image

        levels = ((frame.squeeze(2) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        return [Image.fromarray(picture.numpy()) for picture in levels.cpu()]
