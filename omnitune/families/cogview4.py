"""CogView4: text to image."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import CogView4Pipeline
from diffusers.models.transformers.transformer_cogview4 import (
    CogView4AttnProcessor,
    CogView4TrainingAttnProcessor,
)
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from torch import Tensor, nn

from ..batch import Batch, Streams, on_device
from ..options import option
from ..random import Draw
from .base import LoadRequest, Noisy
from .diffusion.latents import LatentFamily
from .diffusion.padding import pad_texts


@option
class CogView4Options:
    text_length: int = 1024
    """Tokens the text is cut to, before padding to a multiple of 16; the published pipeline uses 1024."""


class MaskedTexts:
    """Attention of a block: the published one for training where texts are masked, else the plain one."""

    def __init__(self) -> None:
        self.plain, self.masked = CogView4AttnProcessor(), CogView4TrainingAttnProcessor()

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Any = None,
        text_attn_mask: Tensor | None = None,
    ) -> Any:
        given = (attn, hidden_states, encoder_hidden_states)
        if text_attn_mask is None:
            return self.plain(*given, image_rotary_emb=image_rotary_emb)
        return self.masked(*given, text_attn_mask=text_attn_mask, image_rotary_emb=image_rotary_emb)


def _to_device_once(rope: nn.Module, args: tuple[Tensor], turns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Move what is made on the CPU: every attention would move it again, and wait."""
    return tuple(on_device(turn, args[0].device) for turn in turns)


class CogView4(LatentFamily):
    name = "cogview4"
    tasks = ("text-to-image",)
    networks = ("transformer", "vae", "text_encoder")
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "glm"}
    moments_per_frame = False
    lora_targets = ("transformer.transformer_blocks.*.attn1.to_*",)
    licence = "Apache-2.0"
    pipeline_class = CogView4Pipeline
    Options = CogView4Options
    variants: ClassVar[Mapping[str, str]] = {"t2i": "zai-org/CogView4-6B"}

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        self.change(self.core, self.mask_texts)
        scheduler = self.files.config("scheduler")
        self.shift_config = [scheduler[k] for k in ("base_image_seq_len", "base_shift", "max_shift")]

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings, (L, D) each, with the padding on the left that the denoiser attends to.

        Each alone: in a batch the pipeline pads to its longest caption, and GLM reads padding as text.
        """
        return {"prompt_embeds": [self.encode_prompts([caption])[0][0] for caption in batch["caption"]]}

    def path(self, u: Tensor, x0: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma, and the timestep before the shift s, of which u = s t / (1 + (s - 1) t) is the level.

        s is that of the published schedule at this resolution, whichever levels training draws.
        """
        s = calculate_shift(self.num_tokens(x0), *self.shift_config)
        return 1 - u, u, 1000 * u / (s + (1 - s) * u)

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, h, w)
        texts = [e.to(x.device, self.dtype) for e in batch["prompt_embeds"]]
        size = on_device(torch.tensor([x.shape[-2:]], dtype=self.dtype), x.device) * self.vae_scale
        size = size.repeat(len(x), 1)  # (B, 2), height and width in pixels
        text, mask = pad_texts(texts, max(map(len, texts)))
        even = len(set(map(len, texts))) == 1
        velocity: Tensor = self.components[self.core](
            hidden_states=x.to(self.dtype),
            encoder_hidden_states=text,
            timestep=noisy.fed,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            attention_kwargs=None if even else {"text_attn_mask": mask.int()},
            return_dict=False,
        )[0]
        return {"x": velocity}

    @staticmethod
    def mask_texts(transformer: Any) -> None:
        """Have attention heed the mask of texts, where a batch has one."""
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(MaskedTexts())
        transformer.rope.register_forward_hook(_to_device_once)
