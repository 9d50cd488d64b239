"""Stable Diffusion 1.5, as a family outside the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline

from omnitune.batch import Batch
from omnitune.families.diffusion.unet import UNetFamily
from omnitune.random import Draw


class StableDiffusion(UNetFamily):
    name = "stable_diffusion"
    tasks = ("text-to-image",)
    networks = ("unet", "vae", "text_encoder")
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "clip"}
    text_option = None  # CLIP reads 77 tokens, so there is nothing to set
    adapter_components = ("unet", "text_encoder")
    lora_targets = ("unet.*.attn?.to_*",)
    licence = "CreativeML OpenRAIL-M"
    pipeline_class = StableDiffusionPipeline
    configs = Path(__file__).parent / "configs"
    variants: ClassVar[Mapping[str, str]] = {"1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings (B, 77, D), padding included: the UNet attends to it, unmasked."""
        encoder: Any = self.components["text_encoder"]
        captions = [str(caption) for caption in batch["caption"]]
        embeds, _ = self.pipeline().encode_prompt(captions, encoder.device, 1, False)
        return {"prompt_embeds": embeds}
