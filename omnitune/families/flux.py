"""FLUX.1: text to image."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor

from ..batch import Batch, Streams, on_device
from ..options import option
from ..random import Draw
from ..stages import Stage
from .base import Noisy
from .diffusion.latents import LatentFamily


@option
class FluxOptions:
    text_length: int = 512
    """Tokens T5's text is cut and padded to, at most 512; the published pipeline uses 512 for FLUX.1-dev."""
    guidance: float = 3.5
    """Scale that a guidance-distilled model is told in training; the published pipeline samples at 3.5."""

    def __post_init__(self) -> None:
        if not 1 <= self.text_length <= 512:
            raise ValueError(f"text_length must be from 1 to 512, not {self.text_length}")


class Flux(LatentFamily):
    name = "flux"
    tasks = ("text-to-image",)
    networks = ("transformer", "vae", "text_encoder", "text_encoder_2")
    others = ("tokenizer", "tokenizer_2", "scheduler")
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "clip", "tokenizer_2": "t5"}
    adapter_components = ("transformer", "text_encoder")
    moments_per_frame = False
    lora_targets = (
        "transformer.*transformer_blocks.*.attn.to_*",
        "transformer.transformer_blocks.*.attn.add_*_proj",
        "transformer.transformer_blocks.*.ff*",
    )
    licence = "FLUX.1 [dev] Non-Commercial License"
    pipeline_class = FluxPipeline
    same_weights = ("FluxImg2ImgPipeline", "FluxInpaintPipeline")
    Options = FluxOptions
    patch = (1, 2, 2)  # packed by the pipeline, whatever its configuration says
    ragged_text = False
    variants: ClassVar[Mapping[str, str]] = {"dev": "black-forest-labs/FLUX.1-dev"}

    @property
    def tokenizer(self) -> Any:
        return self.processor("tokenizer_2")

    def affine(self) -> tuple[Any, Any]:
        return self.vae_config["shift_factor"], self.vae_config["scaling_factor"]

    def text_stages(self) -> list[Stage]:
        return [self.text_stage("text_encoder_2", "caption"), self.pooled_stage("text_encoder")]

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to T5's embeddings, (B, L, D), with those of the padding: the denoiser attends to them."""
        encoder: Any = self.components["text_encoder_2"]
        embeds = self.pipeline()._get_t5_prompt_embeds(
            [str(caption) for caption in batch["caption"]],
            max_sequence_length=self.options.text_length,
            device=encoder.device,
            dtype=encoder.dtype,
        )
        return {"prompt_embeds": embeds}

    def path(self, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """As all flows, but the network multiplies its timestep by 1000 itself."""
        return 1 - u, u, u

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, h, w)
        b, c, h, w = x.shape
        text = batch["prompt_embeds"].to(x.device, self.dtype)  # (B, L, D)
        guidance = torch.full((b,), self.options.guidance, device=x.device) if self.guided else None
        places = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32)
        packed: Tensor = self.components[self.core](
            hidden_states=FluxPipeline._pack_latents(x, b, c, h, w).to(self.dtype),  # (B, h/2 w/2, 4C)
            timestep=noisy.fed,
            guidance=guidance,
            pooled_projections=batch["pooled_embeds"].to(x.device, self.dtype),
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=on_device(places, x.device, self.dtype),
            return_dict=False,
        )[0]
        scale = self.vae_scale
        return {"x": FluxPipeline._unpack_latents(packed, h * scale, w * scale, scale)}

    @contextmanager
    def complete(self) -> Iterator[Any]:
        """As of all families, and the decoder's input in its own dtype: the pipeline passes the text's on."""
        with super().complete() as pipe:
            hook = pipe.vae.decoder.register_forward_pre_hook(
                lambda decoder, args: (args[0].to(pipe.vae.dtype), *args[1:])
            )
            try:
                yield pipe
            finally:
                hook.remove()
