"""CogVideoX 1.0 and 1.5: text, or text and a first frame, to video."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from torch import Tensor

from ..batch import Batch, Streams
from ..data.sizes import Bucket, Limits
from ..errors import UserError
from ..options import option
from ..random import Draw
from ..stages import Stage
from .base import LoadRequest, Noisy
from .diffusion.latents import LatentFamily

IMAGE_SIGMA = (-3.0, 0.5)  # mean and deviation of log sigma of the noise on a given frame, as CogVideo has it
OFS = 2.0  # what the pipeline feeds 1.5 image-to-video beside the timestep


@option
class CogVideoXOptions:
    text_length: int = 226
    """Tokens the text is cut and padded to; the published pipeline uses 226, CogVideo trained 1.5 at 224.
    Checkpoints that add positions to tokens (2B, 5B-I2V) take the length they have positions for."""
    image_noise: bool = True
    """Noise of strength exp(N(-3, 0.5)), one for each sample, on the pixels of a given frame, as CogVideo
    trains: generation then forgives what is wrong with a picture."""


class CogVideoX(LatentFamily):
    name = "cogvideox"
    tasks = ("text-to-video", "image-to-video")
    networks = ("transformer", "vae", "text_encoder")
    fp32 = ()  # the pipeline hands the autoencoder what is of the text encoder's dtype
    lora_targets = ("transformer.transformer_blocks.*.attn1.to_*",)
    licence = "2B: Apache-2.0; all others: CogVideoX licence, commercial use by registration"
    pipeline_class = CogVideoXPipeline
    image_pipeline_class = CogVideoXImageToVideoPipeline
    same_weights = ("CogVideoXVideoToVideoPipeline",)
    Options = CogVideoXOptions
    ragged_text = False
    variants: ClassVar[Mapping[str, str]] = {
        "2b": "THUDM/CogVideoX-2b",
        "5b": "THUDM/CogVideoX-5b",
        "5b-i2v": "THUDM/CogVideoX-5b-I2V",
        "1.5-5b": "THUDM/CogVideoX1.5-5B",
        "1.5-5b-i2v": "THUDM/CogVideoX1.5-5B-I2V",
    }

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        self.alphas_cumprod = self.scheduler().alphas_cumprod
        self.frames_required = self.core_config["in_channels"] > self.vae_config["latent_channels"]
        self.takes = ("first",) if self.frames_required else ()
        self.rotates = self.core_config["use_rotary_positional_embeddings"]
        self.size: Bucket | None = None
        """Of the run, where learned positions are interpolated to it."""
        self.learned = self.core_config.get("use_learned_positional_embeddings", False)
        length, positions = self.options.text_length, self.core_config["max_text_seq_length"]
        if length != positions and (self.learned or not self.rotates):
            raise UserError(
                f"model.options.text_length: {length}, but {self.files.path} has positions for {positions} "
                f"tokens of text; set it to {positions}"
            )

    @property
    def limits(self) -> Limits:
        """The autoencoder decodes latent frames in pairs behind the first, so clips have 8 k + 1 frames."""
        temporal = 2 * self.vae_config["temporal_compression_ratio"]
        return Limits(
            self.vae_scale * self.core_config["patch_size"],
            temporal,
            least_frames=1 + temporal if self.frames_required else 1,
            largest=(self.sample_size.height, self.sample_size.width) if self.patch[0] > 1 else None,
            one_size=self.learned,
        )

    @property
    def sample_size(self) -> Bucket:
        """What the transformer's configuration states: in 1.5, how far its positions reach."""
        height, width = (self.core_config[f"sample_{s}"] * self.vae_scale for s in ("height", "width"))
        return Bucket(self.core_config["sample_frames"], height, width)

    def fit_sizes(self, sizes: Sequence[Bucket]) -> list[str]:
        """Interpolate learned positions to the one size of a run."""
        if not self.learned or sizes[0] == self.sample_size:
            return []
        self.size = sizes[0]
        self.change(self.core, self._fit)
        return [
            f"learned positions of {self.files.path}: interpolated from {self.sample_size} to {self.size}, "
            "the one size at which what is trained generates"
        ]

    def _fit(self, transformer: Any) -> None:
        """Interpolate learned positions to the run's size, which the configuration states from then on."""
        assert self.size is not None
        embed, config, scale = transformer.patch_embed, transformer.config, self.vae_scale
        latent = (self.size.frames, self.size.height // scale, self.size.width // scale)
        sizes = dict(zip(("sample_frames", "sample_height", "sample_width"), latent, strict=True))
        old, new = (
            ((t - 1) // config.temporal_compression_ratio + 1, h // config.patch_size, w // config.patch_size)
            for t, h, w in ([config[name] for name in sizes], latent)
        )
        text = embed.pos_embedding[:, : config.max_text_seq_length]
        grid = embed.pos_embedding[:, config.max_text_seq_length :].mT.unflatten(2, old)  # (1, D, T, h, w)
        resized = F.interpolate(grid.float(), size=new, mode="trilinear").flatten(2).mT.to(text)
        embed.pos_embedding = torch.cat([text, resized], dim=1)
        transformer.register_to_config(**sizes)
        for name, value in sizes.items():
            setattr(embed, name, value)

    @property
    def own_stages(self) -> list[Stage]:
        return [replace(s, gives=("x0", "mask")) if s.name == "latents" else s for s in super().own_stages]

    def draw_latents(self, batch: Batch, draw: Draw) -> Batch:
        """As of every family; 1.5 takes whole pairs of latent frames: copies of the first come before.

        The pipeline drops them before it decodes, so they do not count.
        """
        drawn = super().draw_latents(batch, draw)
        x0 = drawn["x0"]["x"]  # (B, C, T, h, w)
        missing = -x0.shape[2] % self.patch[0]
        if not missing:
            return drawn
        mask = x0.new_ones(len(x0), 1, x0.shape[2] + missing, 1, 1)
        mask[:, :, :missing] = 0
        return {"x0": {"x": torch.cat([*[x0[:, :, :1]] * missing, x0], dim=2)}, "mask": mask}

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings (B, L, D), padding included: the model attends to it, unmasked."""
        return {"prompt_embeds": self.encode_prompts(batch["caption"])[0]}

    def frame_stages(self, frames: str, *, dropout: bool) -> list[Stage]:
        return [
            Stage("picture", (), ("first_frame",), ("picture",), self.keep_picture),
            Stage(
                "image", ("vae",), ("picture",), ("image_latents",), self.encode_picture,
                draws=("image_sigma", "image_noise", "image_posterior"),
            ),
        ]  # fmt: skip

    def keep_picture(self, batch: Batch, draw: Draw) -> Batch:
        """First frames (B, 3, 1, H, W) in [-1, 1] as levels in uint8: noise goes on them in every step."""
        return {"picture": ((batch["first_frame"] + 1) * 127.5).round().to(torch.uint8)}

    def encode_picture(self, batch: Batch, draw: Draw) -> Batch:
        """First frames, with noise on their pixels, as latents (B, C, 1, h, w)."""
        pixels = batch["picture"].float() / 255 * 2 - 1
        if self.options.image_noise:
            mean, std = IMAGE_SIGMA
            sigma = (mean + std * draw.normal("image_sigma")).exp()
            pixels = pixels + sigma.view(-1, 1, 1, 1, 1) * draw.normal("image_noise", pixels.shape[1:])
        z = self.sampled(self.posterior(pixels).parameters, draw, "image_posterior")
        scale = self.vae_config["scaling_factor"]
        return {"image_latents": z / scale if self.vae_config.get("invert_scale_latents") else z * scale}

    def with_frames(self, noisy: Noisy, batch: Batch, frames: str, given: Tensor, kept: Tensor) -> Noisy:
        """Further channels: the given frame as the first latent frame, padding included, and zeros."""
        channels = torch.zeros_like(noisy.x0["x"])
        channels[:, :, :1] = batch["image_latents"] * kept.view(-1, 1, 1, 1, 1)
        noisy.add_channels(channels, own=True)
        return noisy

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, T, h, w)
        latents = self.concatenated(noisy).transpose(1, 2).to(self.dtype)
        velocity: Tensor = self.components[self.core](
            hidden_states=latents,
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            timestep=noisy.fed,
            ofs=latents.new_full((1,), OFS) if self.core_config.get("ofs_embed_dim") else None,
            image_rotary_emb=self.rotary(x) if self.rotates else None,
            return_dict=False,
        )[0]
        return {"x": velocity.transpose(1, 2)}

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (tokens, D) each, of latents (B, C, T, h, w)."""
        pipe = self.pipeline()
        t, h, w = x.shape[2:]
        side = pipe.vae_scale_factor_spatial
        angles: tuple[Tensor, Tensor] = pipe._prepare_rotary_positional_embeddings(
            h * side, w * side, t, x.device
        )
        return angles
