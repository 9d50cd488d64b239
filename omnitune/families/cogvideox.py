"""CogVideoX 1.0 and 1.5: text, or text and a first frame, to video."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from torch import Tensor, nn

from ..random import Draw
from ..types import Batch, Bucket, Limits, Stage, Streams, UserError, option
from ._files import ModelFiles
from ._latents import LatentFamily
from .base import Defaults, Noisy, Sampling, Variant

IMAGE_SIGMA = (-3.0, 0.5)
"""Mean and deviation of log sigma, the strength of noise on a given frame, as CogVideo trains."""
OFS = 2.0
"""What the pipeline feeds 1.5 image-to-video beside the timestep."""
PUBLISHED_1_5 = {"frames": (81,), "area": "768x1360", "size": "81x768x1360", "fps": 16.0}


def resize_positions(transformer: Any, frames: int, height: int, width: int) -> None:
    """Interpolate learned positions to a size in pixel frames, latent rows and latent columns.

    The configuration states the size from then on, so that the pipeline takes it, and no other.
    """
    embed, config = transformer.patch_embed, transformer.config
    side, ratio = config.patch_size, config.temporal_compression_ratio
    old = (config.sample_frames - 1) // ratio + 1, config.sample_height // side, config.sample_width // side
    new = (frames - 1) // ratio + 1, height // side, width // side
    text = embed.pos_embedding[:, : config.max_text_seq_length]
    grid = embed.pos_embedding[:, config.max_text_seq_length :].mT.unflatten(2, old)  # (1, D, T, h, w)
    resized = F.interpolate(grid.float(), size=new, mode="trilinear").flatten(2).mT.to(text)
    embed.pos_embedding = torch.cat([text, resized], dim=1)
    sizes = {"sample_frames": frames, "sample_height": height, "sample_width": width}
    transformer.register_to_config(**sizes)
    for name, value in sizes.items():
        setattr(embed, name, value)


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
    Options = CogVideoXOptions
    defaults = Defaults(
        timesteps="uniform",
        shift=1.0,
        guidance=6.0,
        frames=(49,),
        area="480x720",
        size="49x480x720",
        fps=8.0,
        objective="v_prediction",
    )
    variants: ClassVar[Mapping[str, Variant]] = {
        "2b": Variant("THUDM/CogVideoX-2b"),
        "5b": Variant("THUDM/CogVideoX-5b"),
        "5b-i2v": Variant(
            "THUDM/CogVideoX-5b-I2V", "first",
            {"transformer": {"sample_height": 8, "sample_width": 8, "sample_frames": 17}},
            {"one_size": True},
        ),
        "1.5-5b": Variant("THUDM/CogVideoX1.5-5B", None, {}, PUBLISHED_1_5),
        "1.5-5b-i2v": Variant(
            "THUDM/CogVideoX1.5-5B-I2V", "first", {"transformer": {"ofs_embed_dim": 16}}, PUBLISHED_1_5
        ),
    }  # fmt: skip
    small: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "transformer": {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "time_embed_dim": 16,
            "text_embed_dim": 32, "sample_height": 12, "sample_width": 10, "sample_frames": 17,
        },
        "vae": {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2},
        "text_encoder": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    }  # fmt: skip

    def __init__(self, files: ModelFiles, device: str, dtype: torch.dtype, options: Any = None):
        super().__init__(files, device, dtype, options or CogVideoXOptions())
        self.vae_config, self.transformer_config = files.config("vae"), files.config("transformer")
        self.alphas_cumprod = self.scheduler().alphas_cumprod
        self.vae_scale = 2 ** (len(self.vae_config["block_out_channels"]) - 1)
        self.patch_t = self.transformer_config.get("patch_size_t") or 1
        """Latent frames that make one token: 2 in 1.5."""
        self.frames_required = self.transformer_config["in_channels"] > self.vae_config["latent_channels"]
        self.takes = ("first",) if self.frames_required else ()
        self.rotates = self.transformer_config["use_rotary_positional_embeddings"]
        self.size: Bucket | None = None
        """Of the run, where learned positions are interpolated to it."""
        self.learned = self.transformer_config.get("use_learned_positional_embeddings", False)
        asked, made = self.options.text_length, self.transformer_config["max_text_seq_length"]
        if asked != made and (self.learned or not self.rotates):
            raise UserError(
                f"model.options.text_length: {asked}, but {files.path} has positions for {made} tokens of "
                f"text; set it to {made}"
            )

    @property
    def pipeline_type(self) -> Any:
        return CogVideoXImageToVideoPipeline if self.frames_required else CogVideoXPipeline

    @property
    def limits(self) -> Limits:
        """The autoencoder decodes latent frames in pairs behind the first, so clips have 8 k + 1 frames."""
        temporal = 2 * self.vae_config["temporal_compression_ratio"]
        return Limits(
            self.vae_scale * self.transformer_config["patch_size"],
            temporal,
            least_frames=1 + temporal if self.frames_required else 1,
            largest=(self.sample_size.height, self.sample_size.width) if self.patch_t > 1 else None,
            one_size=self.learned,
        )

    @property
    def sample_size(self) -> Bucket:
        """What the transformer's configuration states: in 1.5, how far its positions reach."""
        config, scale = self.transformer_config, self.vae_scale
        return Bucket(
            config["sample_frames"], config["sample_height"] * scale, config["sample_width"] * scale
        )

    def fit_sizes(self, sizes: Sequence[Bucket]) -> list[str]:
        """Interpolate learned positions to the one size of a run."""
        if not self.learned or sizes[0] == self.sample_size:
            return []
        self.size = sizes[0]
        for name, module in self.components.items():
            self._fit(name, module)
        return [
            f"learned positions of {self.files.path}: interpolated from {self.sample_size} to {self.size}, "
            "the one size at which what is trained generates"
        ]

    def _fit(self, name: str, module: nn.Module) -> nn.Module:
        # On the meta device a network is as its files are, which are held against it.
        if name == "transformer" and self.size is not None and self.device.type != "meta":
            height, width = self.size.height // self.vae_scale, self.size.width // self.vae_scale
            resize_positions(module, self.size.frames, height, width)
        return module

    def _meta(self, name: str) -> nn.Module:
        return self._fit(name, super()._meta(name))

    def _load(self, name: str) -> nn.Module:
        return self._fit(name, super()._load(name))

    def affine(self) -> tuple[Any, Any]:
        return 0.0, self.vae_config["scaling_factor"]

    @property
    def stages(self) -> list[Stage]:
        return [replace(s, gives=("x0", "mask")) if s.name == "latents" else s for s in super().stages]

    def draw_latents(self, batch: Batch, draw: Draw) -> Batch:
        """As of every family; 1.5 takes whole pairs of latent frames: copies of the first come before.

        The pipeline drops them before it decodes, so they do not count.
        """
        drawn = super().draw_latents(batch, draw)
        x0 = drawn["x0"]["x"]  # (B, C, T, h, w)
        missing = -x0.shape[2] % self.patch_t
        if not missing:
            return drawn
        mask = x0.new_ones(len(x0), 1, x0.shape[2] + missing, 1, 1)
        mask[:, :, :missing] = 0
        return {"x0": {"x": torch.cat([*[x0[:, :, :1]] * missing, x0], dim=2)}, "mask": mask}

    def text_stages(self) -> list[Stage]:
        return [
            Stage(
                "text", ("text_encoder",), ("caption",), ("prompt_embeds",), self.encode_text,
                options={"text_length": self.options.text_length},
            )
        ]  # fmt: skip

    def encode_text(self, batch: Batch, draw: Draw) -> Batch:
        """Captions to embeddings (B, L, D), padding included: the model attends to it, unmasked."""
        encoder: Any = self.components["text_encoder"]
        embeds, _ = self.pipeline().encode_prompt(
            list(batch["caption"]),
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.text_length,
            device=encoder.device,
        )
        return {"prompt_embeds": embeds}

    def frame_stages(self) -> list[Stage]:
        return [
            Stage("picture", (), self.pictures, ("picture",), self.keep_picture),
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

    def with_frames(self, noisy: Noisy, batch: Batch, given: Tensor, kept: Tensor) -> Noisy:
        """Further channels: the given frame as the first latent frame, padding included, and zeros."""
        channels = torch.zeros_like(noisy.x0["x"])
        channels[:, :, :1] = batch["image_latents"] * kept.view(-1, 1, 1, 1, 1)
        noisy.extra["channels"] = channels
        return noisy

    def num_tokens(self, x0: Streams) -> int:
        _, _, t, h, w = x0["x"].shape
        side = self.transformer_config["patch_size"]
        return int((t // self.patch_t) * (h // side) * (w // side))

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        x = noisy.x["x"]  # (B, C, T, h, w)
        shown = torch.cat([x, *([noisy.extra["channels"]] if "channels" in noisy.extra else [])], dim=1)
        latents = shown.transpose(1, 2).to(self.dtype)
        velocity: Tensor = self.components["transformer"](
            hidden_states=latents,
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            timestep=noisy.fed,
            ofs=latents.new_full((1,), OFS) if self.transformer_config.get("ofs_embed_dim") else None,
            image_rotary_emb=self.rotary(x) if self.rotates else None,
            return_dict=False,
        )[0]
        return {"x": velocity.transpose(1, 2)}

    def rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (tokens, D) each, of latents (B, C, T, h, w)."""
        pipe = self.pipeline()
        t, h, w = x.shape[2:]
        side = pipe.vae_scale_factor_spatial
        found: tuple[Tensor, Tensor] = pipe._prepare_rotary_positional_embeddings(
            h * side, w * side, t, x.device
        )
        return found

    def call(self, wanted: Sampling) -> dict[str, Any]:
        return {**super().call(wanted), "max_sequence_length": self.options.text_length}
