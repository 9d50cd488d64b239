"""Tiny random pipelines in the published layout, with a real tokenizer trained on captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CAPTIONS = (
    "a fox runs through snow", "two boats on a lake", "smiling face with sunglasses", "a red apple",
    "an airplane flies over the sea, seen from below", "rocket", "a cat plays with a ball of wool", "tornado",
)  # fmt: skip


def train_tokenizer(captions: Sequence[str], folder: Path, vocab_size: int = 512) -> int:
    """Train a unigram tokenizer in T5's layout, save it, return its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import T5TokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = T5TokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


def build_wan(
    folder: Path,
    *,
    captions: Sequence[str] = CAPTIONS,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 12,
    text_dim: int = 32,
    vae_dim: int = 4,
    seed: int = 0,
) -> Path:
    """Save a random Wan text-to-video pipeline: VAE 8 x 8 x 4 to 16 channels, no neutral constant."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    from ..families._diffusers import quiet

    quiet()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vocab = train_tokenizer(captions, folder / "tokenizer")
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocab, d_model=text_dim, d_kv=8, d_ff=2 * text_dim, num_layers=2, num_heads=4
            )
        )
        vae = AutoencoderKLWan(
            base_dim=vae_dim, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.1 * i - 0.7 for i in range(16)], latents_std=[0.5 + 0.1 * i for i in range(16)],
        )  # fmt: skip
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_dim, in_channels=16,
            out_channels=16, text_dim=text_dim, freq_dim=64, ffn_dim=2 * heads * head_dim, num_layers=layers,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
        )  # fmt: skip
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        )
    parts: dict[str, Any] = {
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder": text_encoder.eval(),
        "vae": vae.eval(),
        "transformer": transformer.eval(),
        "scheduler": scheduler,
    }
    WanPipeline(**parts).save_pretrained(folder)
    return folder
