"""HunyuanVideo: text to video, text to image (one frame), and first frame to video."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from torch import Tensor, nn

from ..batch import Batch, Streams
from ..data.sizes import Limits
from ..options import option
from ..random import Draw
from ..sampling import Sampling
from ..stages import Stage
from .base import LoadRequest, Noisy
from .diffusion.latents import LatentFamily
from .diffusion.padding import pad_texts

INTERLEAVE = {"latent_concat": 2, "token_replace": 4}  # of the picture's tokens, one in so many is kept
IMAGE_TOKENS = 576
ASSISTANT_TOKENS = 4
"""Tokens of the answer's header, which the image-to-video pipeline cuts out behind the caption."""


@option
class HunyuanVideoOptions:
    text_length: int = 256
    """Tokens the text is cut and padded to; the published pipelines use 256."""
    guidance: float = 6.0
    """Guidance scale that is fed to a checkpoint distilled for it; sample with the same."""


class HunyuanVideo(LatentFamily):
    name = "hunyuan_video"
    tasks = ("text-to-video", "text-to-image", "image-to-video")
    networks = ("transformer", "vae", "text_encoder", "text_encoder_2")
    others = ("tokenizer", "tokenizer_2", "image_processor", "scheduler")
    optional = ("image_processor",)
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "llama", "tokenizer_2": "clip"}
    lora_targets = tuple(f"transformer.*transformer_blocks.*.attn.{to}" for to in ("to_[qkv]", "to_out.0"))
    licence = "Tencent Hunyuan Community License: not for use in the EU, the UK and South Korea"
    pipeline_class = HunyuanVideoPipeline
    image_pipeline_class = HunyuanVideoImageToVideoPipeline
    Options = HunyuanVideoOptions
    least_text = ASSISTANT_TOKENS + 1
    variants: ClassVar[Mapping[str, str]] = {
        "t2v": "hunyuanvideo-community/HunyuanVideo",
        "i2v": "hunyuanvideo-community/HunyuanVideo-I2V",
        "i2v-33ch": "hunyuanvideo-community/HunyuanVideo-I2V-33ch",
    }

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        self.condition: str | None = self.core_config.get("image_condition_type")
        """How the transformer is given a first frame: `latent_concat`, `token_replace`, or not at all."""
        self.interleave = INTERLEAVE[self.condition] if self.condition else 0
        self.frames_required = self.condition is not None
        self.takes = ("first",) if self.condition else ()

    @property
    def limits(self) -> Limits:
        spatial = self.vae_config["spatial_compression_ratio"] * self.core_config["patch_size"]
        temporal = self.vae_config["temporal_compression_ratio"]
        return Limits(spatial, temporal, least_frames=1 + temporal if self.frames_required else 1)

    def blocks(self, component: str) -> list[nn.Module]:
        """Of a token_replace transformer too, whose blocks diffusers does not list as repeated."""
        if component != self.core:
            return super().blocks(component)
        module: Any = self.components[component]
        return [*module.transformer_blocks, *module.single_transformer_blocks]

    def weight_files(self, component: str) -> list[Path]:
        """The text encoder sees through the image processor, so what it computes depends on that too."""
        files = super().weight_files(component)
        if component == "text_encoder" and "image_processor" in self.files.classes:
            files += [p for p in self.files.component("image_processor").rglob("*") if p.is_file()]
        return sorted(files)

    # Text

    @property
    def prompt_tokens(self) -> int:
        """Length of the padded prompt: the picture's tokens, then the caption's."""
        length = int(self.options.text_length)
        return IMAGE_TOKENS // self.interleave + length - ASSISTANT_TOKENS if self.interleave else length

    def cut_captions(self, captions: Sequence[str]) -> list[int]:
        kept = self.options.text_length - (ASSISTANT_TOKENS if self.condition else 0)
        tokens = self.tokenizer(list(captions), add_special_tokens=False).input_ids
        return [i for i, ids in enumerate(tokens) if len(ids) > kept]

    def text_stages(self) -> list[Stage]:
        settings = {"text_length": self.options.text_length, "condition": self.condition}
        needs = ("caption", "first_frame") if self.condition else ("caption",)
        text = replace(self.text_stage("text_encoder", *needs), options=settings)
        return [text, self.pooled_stage("text_encoder_2")]

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions, each with its first frame in the prompt, to (L, D) each."""
        pictures = self.as_pictures(batch["first_frame"]) if self.condition else []
        return {"prompt_embeds": self.prompts(batch["caption"], pictures)}

    def encode_black(self, batch: Batch, draw: Draw) -> Batch:
        """Captions with a black picture in the prompt, as the pipeline has a negative one."""
        from PIL import Image

        black = Image.new("RGB", (64, 64))
        return {"black_embeds": self.prompts(batch["caption"], [black] * len(batch["caption"]))}

    def prompts(self, captions: Sequence[str], pictures: Sequence[Any]) -> list[Tensor]:
        """Embeddings without padding, (L, D) each: the transformer masks what is behind them.

        One at a time: of captions that are cut, the image-to-video pipeline crops a batch elsewhere.
        """
        encoder: Any = self.components["text_encoder"]
        pipe, prompts = self.pipeline(), []
        for i, caption in enumerate(captions):
            image = {"image": pictures[i], "image_embed_interleave": self.interleave} if pictures else {}
            embeds, _, mask = pipe.encode_prompt(
                prompt=[caption],
                pooled_prompt_embeds=torch.empty(0),  # of another stage
                device=encoder.device,
                max_sequence_length=self.options.text_length,
                **image,
            )  # (1, N, D), (1, N)
            prompts.append(embeds[0][mask[0].bool()])
        return prompts

    # Given frames

    def frame_stages(self, frames: str, *, dropout: bool) -> list[Stage]:
        text = self.text_stages()[0]
        black = replace(
            text, name="text_black", needs=("caption",), gives=("black_embeds",), ragged=("black_embeds",),
            run=self.encode_black,
        )  # fmt: skip
        shown = Stage("condition", ("vae",), ("first_frame",), ("image_latents",), self.encode_frames)
        return [black, shown] if dropout else [shown]

    def encode_frames(self, batch: Batch, draw: Draw) -> Batch:
        """The first frame encoded alone, (B, C, 1, h, w): this VAE is not causal, a clip's own differs."""
        return {"image_latents": self.normalised_mode(batch["first_frame"])}

    def with_frames(self, noisy: Noisy, batch: Batch, frames: str, given: Tensor, kept: Tensor) -> Noisy:
        """The latents of the picture are always given; of rows not `kept` the prompt has a black one."""
        x0 = noisy.x0["x"]  # (B, C, T, h, w)
        image = batch["image_latents"].to(x0)
        if self.condition == "latent_concat":
            channels = x0.new_zeros(len(x0), x0.shape[1] + 1, *x0.shape[2:])  # latents, then their mask
            channels[:, :-1, :1], channels[:, -1, 0] = image, 1
            noisy.add_channels(channels, own=True)
        else:
            noisy.x0["x"] = torch.cat([image, x0[:, :, 1:]], dim=2)
            noisy = self.first_frame_clean(noisy, torch.ones_like(noisy.u))
        if "black_embeds" in batch:
            pairs = zip(batch["prompt_embeds"], batch["black_embeds"], kept.tolist(), strict=True)
            noisy.extra["prompt_embeds"] = [own if keep else black for own, black, keep in pairs]
        return noisy

    # Denoiser

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, T, h, w)
        embeds: list[Tensor] = noisy.extra.get("prompt_embeds") or batch["prompt_embeds"]
        text, mask = pad_texts([e.to(x.device, self.dtype) for e in embeds], self.prompt_tokens)
        guidance = torch.full((len(x),), self.options.guidance, device=x.device, dtype=self.dtype) * 1000
        velocity: Tensor = self.components[self.core](
            hidden_states=self.concatenated(noisy).to(self.dtype),
            timestep=noisy.fed.view(len(x), -1)[:, -1],  # the first frame's is 0 inside the transformer
            encoder_hidden_states=text,
            encoder_attention_mask=mask.to(self.dtype),
            pooled_projections=batch["pooled_embeds"].to(x.device, self.dtype),
            guidance=guidance if self.guided else None,
            return_dict=False,
        )[0]
        return {"x": velocity}

    def call(self, request: Sampling) -> dict[str, Any]:
        arguments = super().call(request)
        if not self.guided:  # then guidance takes a second call, with the negative prompt
            arguments["true_cfg_scale"] = arguments.pop("guidance_scale")
        return arguments
