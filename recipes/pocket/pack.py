"""Pack pocket-wan: the trained encoder and transformer, and the rest of the base, in half precision.

    python recipes/pocket/pack.py pocket-work/base runs/pocket/weights omnitune/assets/pocket-wan

`WanPipeline.from_pretrained` loads the result as it is. Refuses to pack more than 20 MB.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from transformers import UMT5EncoderModel

MOST_BYTES = 20_000_000


def drop_paths(folder: Path) -> None:
    """Remove where each part was loaded from, which is of use on this machine alone."""
    for file in folder.rglob("*.json"):
        data = json.loads(file.read_text())
        if isinstance(data, dict) and data.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(data, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    pipe = WanPipeline.from_pretrained(
        arguments.base,
        transformer=WanTransformer3DModel.from_pretrained(
            arguments.weights / "transformer", torch_dtype=torch.float32
        ),
        text_encoder=UMT5EncoderModel.from_pretrained(arguments.weights / "text_encoder"),
    )
    for name in ("transformer", "text_encoder", "vae"):
        getattr(pipe, name).half()
    pipe.save_pretrained(arguments.out)
    drop_paths(arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{arguments.out}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
