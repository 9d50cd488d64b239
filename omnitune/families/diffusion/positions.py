"""Learned positions of a denoiser at another size than it was pretrained at."""

from typing import Any

import torch
import torch.nn.functional as F


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
