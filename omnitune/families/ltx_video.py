"""LTX-Video 0.9: text, or text and a first frame, to video, and text to image (one frame)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import LTXImageToVideoPipeline, LTXPipeline
from torch import Tensor

from ..batch import Batch, Streams, on_device
from ..data.sizes import Limits
from ..options import option
from ..random import Draw
from ..sampling import Sampling
from .base import Noisy
from .diffusion.latents import LatentFamily
from .diffusion.padding import pad_texts

DECODING = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
"""Level and noise of latents that are decoded, as diffusers' documentation advises for 0.9.5."""


@option
class LTXVideoOptions:
    text_length: int = 128
    """Tokens the text is cut and padded to; the published pipeline uses 128. T5 reads the padding too."""


class LTXVideo(LatentFamily):
    name = "ltx_video"
    tasks = ("text-to-video", "text-to-image", "image-to-video")
    networks = ("transformer", "vae", "text_encoder")
    fp32 = ()  # the image-to-video pipeline hands the autoencoder pictures and latents in the text's dtype
    takes = ("first",)
    lora_targets = ("transformer.transformer_blocks.*.attn?.to_*",)
    licence = "Lightricks RAIL-M: 0.9.0 and 0.9.1 for research, 0.9.5 (OpenRail-M) for commercial use too"
    pipeline_class = LTXPipeline
    image_pipeline_class = LTXImageToVideoPipeline
    same_weights = ("LTXConditionPipeline",)
    Options = LTXVideoOptions
    variants: ClassVar[Mapping[str, str]] = {
        "0.9.0": "Lightricks/LTX-Video",
        "0.9.1": "a-r-r-o-w/LTX-Video-0.9.1-diffusers",
        "0.9.5": "Lightricks/LTX-Video-0.9.5",
    }

    @property
    def limits(self) -> Limits:
        config = self.vae_config
        scale = 2 ** sum(config["spatio_temporal_scaling"])
        return Limits(
            config.get("spatial_compression_ratio") or config["patch_size"] * scale,
            config.get("temporal_compression_ratio") or config["patch_size_t"] * scale,
        )

    def affine(self) -> tuple[Any, Any]:
        mean, std = self.statistics
        return mean, self.vae_config["scaling_factor"] / std

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents, (C,) each: buffers of an autoencoder that need not be loaded."""
        mean, std = self.files.tensors("vae", ("latents_mean", "latents_std"))
        return mean.float(), std.float()

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Send pixels (B, 3, T, H, W) through the VAE and back: at level 0, where its decoder takes one."""
        vae: Any = self.components["vae"]
        z = self.posterior(pixels).mode()
        level = z.new_zeros(len(z)) if self.vae_config.get("timestep_conditioning") else None
        with self.seeded(0):
            decoded: Tensor = vae.decode(z, level).sample
        return decoded.float().clamp(-1, 1)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Seed the global generator for a while: the decoder of 0.9.1 draws noise of its own from it."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings without padding, (L, D) each: the denoiser masks what is behind them.

        T5 itself is given no mask: the embeddings depend on the number of padding tokens.
        """
        embeds, mask, _, _ = self.encode_prompts(batch["caption"])
        return {"prompt_embeds": [e[:n] for e, n in zip(embeds, mask.sum(1).tolist(), strict=True)]}

    def with_frames(self, noisy: Noisy, batch: Batch, frames: str, given: Tensor, kept: Tensor) -> Noisy:
        return self.first_frame_clean(noisy, given)

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, T, h, w)
        texts = [e.to(x.device, self.dtype) for e in batch["prompt_embeds"]]
        # The pipeline has embeddings of padding behind; their weight in attention is exp(-10000), which is 0.
        text, mask = pad_texts(texts, self.options.text_length)
        velocity: Tensor = self.components[self.core](
            hidden_states=x.flatten(2).mT.to(self.dtype),  # (B, S, C): one token a latent pixel
            encoder_hidden_states=text,
            timestep=self.token_timesteps(noisy.fed, x),
            encoder_attention_mask=mask,
            **self.positions(batch["fps"], x),
            return_dict=False,
        )[0]
        return {"x": velocity.mT.reshape(x.shape)}

    @staticmethod
    def token_timesteps(fed: Tensor, x: Tensor) -> Tensor:
        """Timesteps in 0..1000, (B,) as they are, (B, 1, T, 1, 1) as one for each token, (B, S)."""
        return fed if fed.ndim == 1 else fed.expand(-1, 1, *x.shape[2:]).flatten(1)

    def positions(self, fps: Sequence[float], x: Tensor) -> dict[str, Any]:
        """Where tokens are, in seconds and pixels, by the rate of each row.

        One grid and its scale, as the pipeline has it; if rates differ, coordinates (B, 3, S) of each row.
        """
        seconds, side = [self.limits.temporal / rate for rate in fps], self.limits.spatial
        if len(set(seconds)) == 1:
            frames, height, width = x.shape[2:]
            scale = (seconds[0], side, side)
            return {"num_frames": frames, "height": height, "width": width, "rope_interpolation_scale": scale}
        axes = [torch.arange(n, dtype=torch.float32, device=x.device) for n in x.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, S)
        scales = on_device(torch.tensor([[step, side, side] for step in seconds]), x.device)
        return {"video_coords": grid * scales[..., None]}

    def call(self, request: Sampling) -> dict[str, Any]:
        return {**super().call(request), "frame_rate": request.fps, **DECODING}

    def generator(self, request: Sampling) -> torch.Generator:
        """On the device for given frames: that pipeline draws there (`torch.randn` where others copy)."""
        device = self.device if request.pipeline is self.image_pipeline_class else "cpu"
        return torch.Generator(device).manual_seed(request.seed)

    def generate(self, pipe: Any, request: Sampling) -> Any:
        with self.seeded(request.seed):
            return super().generate(pipe, request)
