"""Put pocket-wan together before its transformer is trained: the trained autoencoder, the rest random.

    python recipes/pocket/base.py pocket-data pocket-work/vae pocket-work/base

The tokenizer is trained on the training captions alone. It comes out with its tokens in another order each
time, so trained weights need the one that they were trained with. Encoder and transformer start from --seed.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from omnitune.testing.tiny import train_tokenizer

VOCABULARY = 2048
TEXT_DIM = 128


def captions(data: Path) -> list[str]:
    files = [data / kind / "train" / "metadata.jsonl" for kind in ("pictures", "clips")]
    return [json.loads(line)["caption"] for file in files for line in file.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="folder of one that is trained already")
    arguments = parser.parse_args()
    tokenizer = arguments.out / "tokenizer"
    if arguments.tokenizer:
        shutil.copytree(arguments.tokenizer, tokenizer, dirs_exist_ok=True)
    else:
        train_tokenizer(captions(arguments.data), tokenizer, VOCABULARY)
    vocab_size = len(AutoTokenizer.from_pretrained(tokenizer))
    torch.manual_seed(arguments.seed)
    text = UMT5Config(
        vocab_size=vocab_size,
        d_model=TEXT_DIM,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=640,
        num_layers=5,
        rope_max_seq_len=64,
    )
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(arguments.out / "tokenizer"),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=AutoencoderKLWan.from_pretrained(arguments.vae, torch_dtype=torch.float32),
        transformer=transformer.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
        ),
    )
    pipe.save_pretrained(arguments.out)
    for name in ("transformer", "text_encoder", "vae"):
        print(f"{name}: {sum(p.numel() for p in getattr(pipe, name).parameters()):,} parameters")


if __name__ == "__main__":
    main()
