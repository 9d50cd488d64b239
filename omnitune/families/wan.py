"""Wan 2.1 and 2.2: text, first frame, or first and last frame to video, and text to image (one frame)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from ..batch import Batch, Streams
from ..data.sizes import Limits
from ..errors import UserError
from ..options import NOT_LEARNED, option
from ..random import Draw
from ..stages import Stage
from .base import LoadRequest, Noisy
from .diffusion.latents import LatentFamily, given_frames
from .diffusion.padding import Padding
from .diffusion.pipeline import LORA_FILE
from .diffusion.widen import Ends


@option
class WanOptions:
    text_length: int = 512
    """Tokens the text is cut and padded to; the published pipeline uses 512."""
    fold_padding: Annotated[bool, NOT_LEARNED] = False
    """Attend once, with the weight of all, to the zeros behind a caption: the same result to rounding, and
    much faster where the text is longer than the picture."""


class Wan(LatentFamily):
    name = "wan"
    tasks = ("text-to-video", "text-to-image", "image-to-video", "first-last-frame-to-video")
    networks = ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder")
    others = ("tokenizer", "image_processor", "scheduler")
    optional = ("transformer_2", "image_encoder", "image_processor")
    adapter_components = ("transformer", "transformer_2")
    lora_targets = ("transformer*.blocks.*.attn?.to_*", "transformer*.blocks.*.ffn")
    licence = "Apache-2.0"
    pipeline_class = WanPipeline
    image_pipeline_class = WanImageToVideoPipeline
    same_weights = ("WanVideoToVideoPipeline",)
    Options = WanOptions
    clean_caption = staticmethod(prompt_clean)
    ends = Ends("patch_embedding", "proj_out", outputs_last=True)
    variants: ClassVar[Mapping[str, str]] = {
        "t2v": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "t2v-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "i2v": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "i2v-720p": "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        "flf2v": "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        "t2v-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "i2v-a14b": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    }

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        published = self.options == WanOptions()
        if self.core_config.get("added_kv_proj_dim") and not published:
            raise UserError(
                f"model.options: {self.files.path} tells pictures from texts by a length of 512; leave out "
                "text_length and fold_padding"
            )
        self.padding = Padding(self.options.text_length, self.options.fold_padding)
        if self.options.fold_padding:
            for core in self.cores:
                self.change(core, self.padding.attach)
        self.per_token = bool(self.files.pipeline_config.get("expand_timesteps"))
        """Wan 2.2 TI2V-5B: each token has its own timestep, a clean frame's is 0."""
        self.boundary = self.files.pipeline_config.get("boundary_ratio")
        """Wan 2.2 A14B: the level above which `transformer` takes over from `transformer_2`."""
        # A mask of 4 channels and latents; a checkpoint that was widened for less is not given frames.
        given = self.limits.temporal + self.vae_config["z_dim"]
        self.concatenates = self.core_config["in_channels"] - self.vae_config["z_dim"] >= given
        self.frames_required = self.concatenates
        if self.concatenates:
            several = ("first",) if "image_encoder" in self.parts else ("first", "both")
            self.takes = ("both",) if self.core_config.get("pos_embed_seq_len") else several
        elif self.per_token:
            self.takes = ("first",)

    @property
    def cores(self) -> Sequence[str]:
        return [name for name in ("transformer", "transformer_2") if name in self.files.classes]

    @property
    def experts(self) -> Mapping[str, tuple[float, float]]:
        if self.boundary is None:
            return {}
        ranges = {"transformer": (self.boundary, 1.0), "transformer_2": (0.0, self.boundary)}
        return {name: ends for name, ends in ranges.items() if name in self.components}

    @property
    def limits(self) -> Limits:
        spatial = self.vae_config.get("scale_factor_spatial", 8) * self.core_config["patch_size"][1]
        temporal = self.vae_config.get("scale_factor_temporal", 4)
        return Limits(spatial, temporal, least_frames=1 + temporal if self.frames_required else 1)

    @property
    def patch(self) -> tuple[int, int, int]:
        t, h, w = self.core_config["patch_size"]
        return t, h, w

    @property
    def own_channels(self) -> tuple[int, int]:
        latents = self.vae_config["z_dim"]
        return latents + (self.limits.temporal + latents if self.concatenates else 0), latents

    def affine(self) -> tuple[Any, Any]:
        return self.vae_config["latents_mean"], [1 / std for std in self.vae_config["latents_std"]]

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings without padding, (L, D) each: the pipeline has zeros behind a caption."""
        encoder: Any = self.components["text_encoder"]
        tokens = self.tokenizer(
            [self.clean_caption(caption) for caption in batch["caption"]],
            padding="longest",
            max_length=self.options.text_length,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        embeds = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state  # (B, L, D)
        lengths = tokens.attention_mask.sum(1).tolist()
        return {"prompt_embeds": [e[:n] for e, n in zip(embeds, lengths, strict=True)]}

    def frame_stages(self, frames: str, *, dropout: bool) -> list[Stage]:
        if not self.concatenates:  # a clean first frame is the clip's own: this autoencoder is causal
            return []
        ends = ("first_frame", "last_frame") if frames == "both" else ("first_frame",)
        needs, settings = (*ends, "moments"), {"frames": frames}
        shown = Stage("condition", ("vae",), needs, ("condition",), self.encode_frames, options=settings)
        seen = Stage("image", ("image_encoder",), ends, ("image_embeds",), self.encode_images)
        return [shown, seen] if "image_encoder" in self.parts else [shown]

    def encode_frames(self, batch: Batch, draw: Draw) -> Batch:
        """Given frames, zeros between them, as latents (B, C, T', h, w) at the posterior's mode."""
        first, *last = given_frames(batch)  # (B, 3, 1, H, W)
        num_frames = (batch["moments"].shape[2] - 1) * self.limits.temporal + 1
        between = first.new_zeros(*first.shape[:2], num_frames - 1 - len(last), *first.shape[3:])
        return {"condition": self.normalised_mode(torch.cat([first, between, *last], dim=2))}

    def encode_images(self, batch: Batch, draw: Draw) -> Batch:
        """Given frames through CLIP, (B, N, L, D): the last but one of its hidden states."""
        encoder: Any = self.components["image_encoder"]
        found = []
        for frame in given_frames(batch):
            pictures = self.as_pictures(frame)
            pixels = self.processor("image_processor")(images=pictures, return_tensors="pt")
            inputs = pixels["pixel_values"].to(encoder.device, encoder.dtype)
            found.append(encoder(inputs, output_hidden_states=True).hidden_states[-2])
        return {"image_embeds": torch.stack(found, 1)}

    def with_frames(self, noisy: Noisy, batch: Batch, frames: str, given: Tensor, kept: Tensor) -> Noisy:
        x0 = noisy.x0["x"]
        rows = [-1, *[1] * (x0.ndim - 1)]
        if self.per_token:  # the pipeline gives the mode
            mode = self.normalised(batch["moments"].chunk(2, dim=1)[0][:, :, :1])
            first = torch.where(given.view(rows), mode, x0[:, :, :1])
            noisy.x0["x"] = torch.cat([first, x0[:, :, 1:]], dim=2)
            return self.first_frame_clean(noisy, given)
        # 1 where a pixel frame is given; its first latent frame is one pixel frame, folded into channels.
        mask = x0.new_zeros(len(x0), self.limits.temporal, *x0.shape[2:])
        mask[:, :, 0] = 1
        if frames == "both":
            mask[:, -1, -1] = 1
        channels = torch.cat([mask, batch["condition"].to(x0)], dim=1)
        noisy.add_channels(channels * kept.view(rows), own=True)
        if "image_embeds" in batch:
            noisy.extra["image_embeds"] = batch["image_embeds"] * kept.view(-1, 1, 1, 1)
        return noisy

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, T, h, w)
        text = self.padding.pad([e.to(x.device, self.dtype) for e in batch["prompt_embeds"]])
        images = noisy.extra.get("image_embeds")  # (B, N, L, D)
        velocity: Tensor = self.components[noisy.expert or self.core](
            hidden_states=self.concatenated(noisy).to(self.dtype),
            timestep=self.token_timesteps(noisy.fed, x) if self.per_token else noisy.fed,
            encoder_hidden_states=text,
            encoder_hidden_states_image=None if images is None else images.flatten(0, 1).to(self.dtype),
            return_dict=False,
        )[0]
        return self.streams(velocity)

    def token_timesteps(self, fed: Tensor, x: Tensor) -> Tensor:
        """Timesteps in 0..1000, (B,) or (B, 1, T, 1, 1), as one for each token, (B, S)."""
        _, p_h, p_w = self.patch
        fed = fed.view(-1, 1, 1, 1, 1) if fed.ndim == 1 else fed
        return fed.expand(-1, 1, *x.shape[2:])[:, 0, :, ::p_h, ::p_w].flatten(1)

    def adapter_files(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """The pipeline reads the second expert's adapter from a file of its own, named as the first's."""
        files = {"transformer": LORA_FILE, "transformer_2": LORA_FILE.replace(".", "_2.")}
        return {files[name]: {"transformer": name} for name in names}
