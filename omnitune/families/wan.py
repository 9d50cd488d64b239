"""Wan 2.1 text-to-video and text-to-image (an image is one frame)."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from ..random import Draw
from ..types import Batch, Limits, Stage, Streams, UserError, option
from ._diffusers import DiffusersFamily
from ._files import ModelFiles
from .base import Defaults, Noisy, Sampling


@option
class WanOptions:
    text_length: int = 512
    """Tokens the text is cut and padded to; the published pipeline uses 512."""
    fold_padding: bool = False
    """Attend once, with the weight of all, to the zeros behind a caption: the same result to rounding, and
    much faster where the text is longer than the picture."""


class Wan(DiffusersFamily):
    name = "wan"
    tasks = ("text-to-video", "text-to-image")
    networks = ("transformer", "vae", "text_encoder")
    lora_targets = ("transformer.blocks.*.attn?.to_*", "transformer.blocks.*.ffn")
    licence = "Apache-2.0 (Wan 2.1)"
    pipeline_class = WanPipeline
    Options = WanOptions
    defaults = Defaults(
        path="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        timesteps="logit_normal",
        shift=3.0,  # flow_shift of the published scheduler at 480p
        guidance=5.0,
        frames=(1, 49),
        area="480x832",
        size="49x480x832",
        fps=16.0,
        rule="height and width multiples of 16, frames 4 * k + 1",
    )

    def __init__(self, files: ModelFiles, device: str, dtype: torch.dtype, options: Any = None):
        super().__init__(files, device, dtype, options or WanOptions())
        self.vae_config, self.transformer_config = files.config("vae"), files.config("transformer")
        self._check_supported()
        self.padding_bias: Tensor | None = None
        self.stages = [
            Stage("moments", ("vae",), ("pixels",), ("moments",), self.encode_pixels),
            Stage("latents", (), ("moments",), ("x0",), self.draw_latents, draws=("posterior",)),
            Stage(
                "text", ("text_encoder",), ("caption",), ("prompt_embeds",), self.encode_text,
                ragged=("prompt_embeds",), options={"text_length": self.options.text_length},
            ),
        ]  # fmt: skip

    def _check_supported(self) -> None:
        """Raise UserError for relatives of Wan 2.1 text-to-video that are fed otherwise."""
        channels, latents = self.transformer_config["in_channels"], self.vae_config["z_dim"]
        reason = None
        if "transformer_2" in self.files.classes:
            reason = "it has two experts (Wan 2.2 A14B)"
        elif channels != latents or self.transformer_config.get("image_dim"):
            reason = f"its transformer reads {channels} channels and the VAE gives {latents} (image-to-video)"
        elif self.vae_config.get("is_residual"):
            reason = "its VAE is Wan 2.2's (TI2V-5B), which takes a timestep for each token"
        if reason:
            raise UserError(
                f"model.path: {self.files.path} is not Wan 2.1 text-to-video: {reason}; "
                "family wan trains that one"
            )

    @property
    def limits(self) -> Limits:
        spatial = self.vae_config.get("scale_factor_spatial", 8) * self.transformer_config["patch_size"][1]
        return Limits(spatial=spatial, temporal=self.vae_config.get("scale_factor_temporal", 4))

    def encode_pixels(self, batch: Batch, draw: Draw) -> Batch:
        """Pixels (B, 3, T, H, W) in [-1, 1] to the posterior's mean and log-variance.

        (B, 2C, 1 + (T - 1) / 4, H / 8, W / 8).
        """
        vae: Any = self.components["vae"]
        pixels = batch["pixels"].to(vae.device, vae.dtype)
        return {"moments": vae.encode(pixels).latent_dist.parameters}

    def draw_latents(self, batch: Batch, draw: Draw) -> Batch:
        """Sample the posterior, then (z - mean) / std with the VAE's statistics: its deviation scales too."""
        mean, logvar = batch["moments"].float().chunk(2, dim=1)  # (B, C, T, H, W)
        std = (0.5 * logvar.clamp(-30, 20)).exp()  # diffusers' DiagonalGaussianDistribution clamps alike
        z = mean + std * draw.normal("posterior", mean.shape[1:])
        shift, scale = (
            torch.tensor(self.vae_config[key], device=z.device).view(1, -1, 1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )
        return {"x0": {"x": (z - shift) / scale}}

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
        return {
            "prompt_embeds": [
                e[:n] for e, n in zip(embeds, tokens.attention_mask.sum(1).tolist(), strict=True)
            ]
        }

    @staticmethod
    def clean_caption(caption: str) -> str:
        cleaned: str = prompt_clean(caption)
        return cleaned

    def num_tokens(self, x0: Streams) -> int:
        _, _, t, h, w = x0["x"].shape
        p_t, p_h, p_w = self.transformer_config["patch_size"]
        return int((t // p_t) * (h // p_h) * (w // p_w))

    def denoise(self, noisy: Noisy, batch: Batch) -> Streams:
        embeds = [e.to(noisy.x["x"].device, self.dtype) for e in batch["prompt_embeds"]]
        text, self.padding_bias = self.pad_text(embeds)
        velocity: Tensor = self.components["transformer"](
            hidden_states=noisy.x["x"].to(self.dtype),  # (B, C, T, H, W)
            timestep=noisy.fed,  # (B,) in 0..1000
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        return {"x": velocity}

    def pad_text(self, embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Texts (L, D) with zeros behind them, (B, text_length, D).

        Folded, they have one zero each that stands for all, (B, M, D), by a bias of attention, (B, 1, 1, M).
        """
        lengths = torch.tensor([len(e) for e in embeds])
        full = self.options.text_length
        width = min(full, int(lengths.max()) + 1) if self.options.fold_padding else full
        text = torch.stack([torch.cat([e, e.new_zeros(width - len(e), e.shape[1])]) for e in embeds])
        if width == full:
            return text, None
        # n equal keys weigh as one whose logit is higher by log n.
        bias = torch.zeros(len(embeds), width)
        column = torch.arange(width)
        bias[column > lengths[:, None]] = -torch.inf
        bias[torch.arange(len(embeds)), lengths] = (full - lengths).float().log()
        return text, bias[:, None, None].to(text)

    def _load(self, name: str) -> nn.Module:
        module = super()._load(name)
        if name == self.core and self.options.fold_padding:
            for block in cast(Any, module).blocks:
                block.attn2.register_forward_pre_hook(self._weigh_padding)
        return module

    def _weigh_padding(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, text, _, rotary = args
        return hidden, text, self.padding_bias, rotary

    def generate(self, pipe: Any, wanted: Sampling) -> Any:
        self.padding_bias = None  # the pipeline pads in full
        return super().generate(pipe, wanted)

    @classmethod
    def tiny(cls, vocab_size: int, **sizes: int) -> dict[str, Any]:
        defaults = {"layers": 2, "heads": 2, "head_dim": 12, "text_dim": 32, "vae_dim": 4}
        layers, heads, head_dim, text_dim, vae_dim = {**defaults, **sizes}.values()
        text = UMT5Config(
            vocab_size=vocab_size, d_model=text_dim, d_kv=8, d_ff=2 * text_dim, num_layers=2, num_heads=4
        )
        transformer = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            text_dim=text_dim,
            freq_dim=64,
            ffn_dim=2 * heads * head_dim,
            num_layers=layers,
            rope_max_seq_len=64,
        )
        vae = AutoencoderKLWan(
            base_dim=vae_dim,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1 * i - 0.7 for i in range(16)],
            latents_std=[0.5 + 0.1 * i for i in range(16)],
        )
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=cls.defaults.shift
        )
        networks = {"transformer": transformer, "vae": vae, "text_encoder": UMT5EncoderModel(text)}
        return {**{name: network.eval() for name, network in networks.items()}, "scheduler": scheduler}
