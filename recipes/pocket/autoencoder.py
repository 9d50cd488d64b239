"""Train pocket-wan's autoencoder: AutoencoderKLWan on pictures and clips of 64 pixels.

    python recipes/pocket/autoencoder.py pocket-data pocket-work/vae --minutes 75

Autoencoders are outside the trainer's scope, hence this script. A sitting ends after --minutes with a
snapshot in half precision; the next goes on from it, with a fresh optimizer and a warm-up. --total states
the minutes that the learning rate's schedule spans. A minute is two minutes of CPU time: one of a machine
with two cores. --evaluate prints PSNR on the held-out concepts.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan
from torch import Tensor

from omnitune.data.media import probe, read_frames, read_image

CONFIG = {
    "base_dim": 24,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}
KL = 1e-6
PICTURES = 16
CLIP_SHARE, CLIPS = 0.5, 2
CLIP_FRAMES = (9, 17)
"""At least 3 chunks of latents: the first two are decoded in ways of their own."""
SAY, SNAPSHOT = 2.5, 15


def skip_zero_frames() -> None:
    """Convolve a first frame with the last slice of each kernel only: the others meet the zeros before it.

    Exact, and twice as fast on pictures.
    """
    convolution = autoencoder_kl_wan.WanCausalConv3d
    forward = convolution.forward

    def shorter(self: torch.nn.Conv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if x.shape[2] > 1 or cache_x is not None or self.kernel_size[0] != 3 or self.stride[0] != 1:
            return forward(self, x, cache_x)
        padding = (self._padding[2], self._padding[0])
        frame = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)
        return frame.unsqueeze(2)

    convolution.forward = shorter


def load(folder: Path) -> list[Tensor]:
    """(T, H, W, 3) uint8 of each item of a folder source; T is 1 for pictures."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        path = folder / row["file_name"]
        frames = (
            read_image(path) if path.suffix == ".png" else read_frames(path, range(probe(path).num_frames))
        )
        found.append(torch.from_numpy(np.ascontiguousarray(frames)))
    return found


def pixels(items: list[Tensor]) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1]."""
    return (torch.stack(items).float() / 127.5 - 1).permute(0, 4, 1, 2, 3)


def batches(data: dict[str, list[Tensor]], seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        if rng.random() < CLIP_SHARE:
            chosen = [data["clips"][i] for i in rng.integers(len(data["clips"]), size=CLIPS)]
            frames = int(rng.choice(CLIP_FRAMES))
            starts = [rng.integers(len(c) - frames + 1) for c in chosen]
            batch = pixels([c[s : s + frames] for c, s in zip(chosen, starts, strict=True)])
        else:
            batch = pixels([data["pictures"][i] for i in rng.integers(len(data["pictures"]), size=PICTURES)])
        if rng.random() < 0.5:
            batch = batch.flip(-1)
        shift = [int(s) for s in rng.integers(-3, 4, size=2)]
        yield torch.roll(batch, shift, (-2, -1))


def psnr(vae: AutoencoderKLWan, items: list[Tensor], frames: int) -> float:
    """Mean over items of the PSNR in dB of decoded posterior means, as a viewer sees it: 8 bits, 0 to 255."""
    found = []
    with torch.no_grad():
        for i in range(0, len(items), 8):
            x = pixels([item[:frames] for item in items[i : i + 8]])
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
            to8 = [((v + 1) * 127.5).round() for v in (x, y)]
            mse = ((to8[0] - to8[1]) ** 2).flatten(1).mean(1).clamp(min=1e-3)
            found += (10 * torch.log10(255**2 / mse)).tolist()
    return sum(found) / len(found)


def evaluate(vae: AutoencoderKLWan, held: dict[str, list[Tensor]]) -> str:
    pictures, clips = psnr(vae, held["pictures"], 1), psnr(vae, held["clips"], 17)
    return f"held-out PSNR: pictures {pictures:.2f} dB, clips of 17 frames {clips:.2f} dB"


def statistics(vae: AutoencoderKLWan, data: dict[str, list[Tensor]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over training pictures and clips in equal parts."""
    latents = []
    with torch.no_grad():
        for kind, frames, count in (("pictures", 1, 640), ("clips", 17, 128)):
            for i in range(0, count, 16):
                z = vae.encode(pixels([c[:frames] for c in data[kind][i : i + 16]])).latent_dist.mode()
                latents.append(z.transpose(0, 1).flatten(1))
    z = torch.cat(latents, 1)
    return [round(v, 4) for v in z.mean(1).tolist()], [round(v, 4) for v in z.std(1).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--total", type=float, default=180)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    arguments = parser.parse_args()
    held = {kind: load(arguments.data / kind / "heldout") for kind in ("pictures", "clips")}
    held["clips"] = [c for c in held["clips"] if len(c) >= 17]
    state_file = arguments.out / "state.json"
    state = json.loads(state_file.read_text()) if state_file.is_file() else {"step": 0, "minutes": 0.0}
    torch.manual_seed(arguments.seed + state["step"])
    skip_zero_frames()
    if state["step"]:
        vae = AutoencoderKLWan.from_pretrained(arguments.out, torch_dtype=torch.float32)
    else:
        vae = AutoencoderKLWan(**CONFIG)
    if arguments.evaluate:
        print(evaluate(vae.eval(), held))
        return
    train(vae, arguments, state, held)


def train(
    vae: AutoencoderKLWan, arguments: argparse.Namespace, state: dict, held: dict[str, list[Tensor]]
) -> None:
    data = {kind: load(arguments.data / kind / "train") for kind in ("pictures", "clips")}
    data["clips"] = [c for c in data["clips"] if len(c) >= 17]
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    average = {n: p.detach().clone() for n, p in vae.named_parameters()}
    begin, first, said, kept = state["minutes"], state["step"], 0.0, 0.0
    started = time.process_time()
    for batch in batches(data, arguments.seed + state["step"]):
        minutes = (time.process_time() - started) / 120
        state["minutes"] = begin + minutes
        if minutes - kept > SNAPSHOT or minutes >= arguments.minutes:
            kept = minutes
            snapshot(vae, average, arguments.out, state, data)
            held_out = AutoencoderKLWan.from_pretrained(arguments.out, torch_dtype=torch.float32)
            print(evaluate(held_out.eval(), held), flush=True)
        if minutes >= arguments.minutes:
            break
        done = min(1.0, state["minutes"] / arguments.total)
        warm = min(1.0, (state["step"] - first + 1) / 100)
        rate = arguments.lr * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(decoded, batch) + F.mse_loss(decoded, batch) + KL * posterior.kl().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        decay = min(0.998, state["step"] / (state["step"] + 10))
        for n, p in vae.named_parameters():
            average[n].lerp_(p.detach(), 1 - decay)
        if minutes - said > SAY:
            said = minutes
            print(
                f"{minutes:.0f} min, step {state['step']}, loss {loss.item():.4f}, lr {rate:.2e}", flush=True
            )


def snapshot(
    vae: AutoencoderKLWan, average: dict[str, Tensor], out: Path, state: dict, data: dict[str, list[Tensor]]
) -> None:
    """Write the averaged weights in half precision, with the statistics of their latents in the config."""
    averaged = deepcopy(vae).eval()
    averaged.load_state_dict(average, strict=False)
    mean, std = statistics(averaged, data)
    averaged.register_to_config(latents_mean=mean, latents_std=std)
    averaged.half().save_pretrained(out)
    (out / "state.json").write_text(json.dumps(state) + "\n")


if __name__ == "__main__":
    main()
