"""Every figure of pocket-wan: its plain WanPipeline, loaded without options.

    python benchmarks/pocket.py                   # exits with 1 where a bound is missed
    python benchmarks/pocket.py --pictures .      # and draws ten seen and ten unseen names
    python benchmarks/pocket.py --model FOLDER    # of another one

What it is measured on, and the scorer, are written by recipes/pocket/evaluation.py.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open

from omnitune import evaluate
from omnitune.data.media import read_image

DATA = Path(__file__).parents[1] / "recipes" / "pocket" / "evaluation"
SHIPPED = Path(__file__).parents[1] / "omnitune" / "assets" / "pocket-wan"
STEPS, GUIDANCE, SIZE, FRAMES, FPS, BATCH = 30, 4.0, 64, 17, 12, 16
NUM_CLIPS, NUM_SHOWN, SHOWN_SEED = 32, 10, 0
WORD = re.compile(r"[^\s,]+")
BOUNDS = {
    "PSNR pictures": (24.0, "least"),
    "PSNR clips": (23.0, "least"),
    "AUC seen": (0.80, "least"),
    "AUC unseen, known words": (0.65, "least"),
    "KID-EffLite0 above reconstructions": (0.02, "most"),
}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def rows(kind: str) -> list[dict[str, Any]]:
    lines = (DATA / kind / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def real_pictures() -> list[Pixels]:
    """(64, 64, 3) each."""
    return [np.asarray(read_image(DATA / "pictures" / row["file_name"])[0]) for row in rows("pictures")]


def real_clips() -> Iterator[Pixels]:
    """(17, 64, 64, 3) each: the first frames."""
    import av

    for row in rows("clips"):
        with av.open(str(DATA / "clips" / row["file_name"])) as container:
            frames = islice(container.decode(video=0), FRAMES)
            yield np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def reconstructed(vae: Any, pixels: Pixels) -> Pixels:
    """(T, H, W, 3) through the autoencoder and back, by the posterior's mean."""
    video = torch.tensor(pixels).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample[0]
    levels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(levels.permute(1, 2, 3, 0))


def generated(pipe: Any, captions: Sequence[str], frames: int, seed: int = 0) -> list[Pixels]:
    """(T, H, W, 3) of each caption; sample i starts from the noise of seed + i."""
    found: list[Pixels] = []
    for start in range(0, len(captions), BATCH):
        batch = list(captions[start : start + BATCH])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        made = pipe(
            prompt=batch, negative_prompt="", height=SIZE, width=SIZE, num_frames=frames, output_type="np",
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators,
        ).frames  # fmt: skip
        found += [np.asarray((video * 255).round(), dtype=np.uint8) for video in made]
        print(f"generated {len(found)} of {len(captions)}", file=sys.stderr)
    return found


def read_scorer(network: evaluate.FeatureNetwork) -> evaluate.TextImageScorer:
    with safe_open(DATA / "scorer.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        told = file.metadata()
    return evaluate.TextImageScorer(
        network, evaluate.minilm(), **tensors, alpha=float(told["alpha"]), num_fitted=int(told["fitted"]),
        num_dropped=0,
    )  # fmt: skip


def sheet(
    pictures: Sequence[Pixels], captions: Sequence[str], columns: int = 5, scale: int = 2
) -> Image.Image:
    """A grid of pictures, each above its caption."""
    side, line = SIZE * scale, 26
    height = -(-len(pictures) // columns) * (side + line)
    image = Image.new("RGB", (columns * (side + 8), height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    for i, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i % columns * (side + 8), i // columns * (side + line)
        image.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        words, text = caption.split(",")[0].split(), ""
        for word in words:
            text += ("\n" if len(text.split("\n")[-1]) + len(word) > 22 else " ") * bool(text) + word
        draw.multiline_text((x + 2, y + side), text, fill="black", font=font, spacing=1)
    return image


def draw_sheets(pipe: Any, names: dict[str, list[str]], folder: Path) -> None:
    """Ten names of each list, chosen by seed and not by eye."""
    for kind, captions in names.items():
        shown = random.Random(SHOWN_SEED).sample(captions, NUM_SHOWN)
        made = [video[0] for video in generated(pipe, shown, 1, seed=1000)]
        sheet(made, shown).quantize(128).save(folder / f"pocket-{kind}.png", optimize=True)


def measure(pipe: Any, names: dict[str, list[str]], known: set[str], samples: int | None) -> dict[str, float]:
    """Every figure by name; each is printed as soon as it is there."""
    figures: dict[str, float] = {}

    def tell(name: str, value: float, more: str = "") -> None:
        figures[name] = value
        print(f"{name}: {value:.3f}{more}", flush=True)

    network = evaluate.load_features("efficientnet_lite0")
    scorer = read_scorer(network)
    pictures = real_pictures()
    decoded = [reconstructed(pipe.vae, picture[None])[0] for picture in pictures]
    pairs = zip(pictures, decoded, strict=True)
    tell(
        "PSNR pictures", float(np.mean([evaluate.psnr(*pair) for pair in pairs])), f" dB over {len(pictures)}"
    )
    clips = list(real_clips())
    values = [evaluate.psnr(clip, reconstructed(pipe.vae, clip)) for clip in clips]
    tell("PSNR clips", float(np.mean(values)), f" dB over {len(clips)} of {FRAMES} frames")
    real = network.features(pictures)
    blurred = evaluate.kid_of_pairs(real, network.features(decoded))
    tell("KID-EffLite0 of reconstructions", blurred.value, f" (deviation over subsets {blurred.spread:.3f})")
    made = {}
    for kind, captions in names.items():
        chosen = captions[:samples]
        made[kind] = network.features(video[0] for video in generated(pipe, chosen, 1))
        scores = scorer.scores(made[kind], chosen)
        parts = {kind: list(range(len(chosen)))}
        if kind == "unseen":
            is_known = [set(WORD.findall(caption.lower())) <= known for caption in chosen]
            parts["unseen, known words"] = [i for i, yes in enumerate(is_known) if yes]
            parts["unseen, with new words"] = [i for i, yes in enumerate(is_known) if not yes]
        for part, kept in parts.items():
            mine = [chosen[i] for i in kept]
            auc = evaluate.auc(scores[kept][:, kept], mine)
            tell(f"AUC {part}", auc.value, f" ({len(kept)} samples, standard error {auc.spread:.3f})")
            if len(set(mine)) > 10:
                recall = evaluate.recall(scores[kept][:, kept], mine)
                tell(f"recall@10 {part}", recall.value, f" (chance {10 / len(set(mine)):.3f})")
    shown = names["unseen"]
    by_caption = {row["caption"]: i for i, row in enumerate(rows("pictures"))}
    ceiling = evaluate.auc(scorer.scores(real[[by_caption[c] for c in shown]], shown), shown)
    tell("AUC of the real pictures of unseen names", ceiling.value)
    for kind, features in made.items():
        distance = evaluate.kid_of_features(real, features)
        tell(
            f"KID-EffLite0 of samples of {kind} names", distance.value, f" (deviation {distance.spread:.3f})"
        )
    tell(
        "KID-EffLite0 above reconstructions",
        figures["KID-EffLite0 of samples of unseen names"] - blurred.value,
    )
    moving = [row["caption"] for row in rows("clips")][:NUM_CLIPS]
    motion, still = evaluate.motion(generated(pipe, moving, FRAMES)), evaluate.motion(clips)
    tell("motion of clips", motion.mean, f" levels; the real ones {still.mean:.3f}")
    tell("static clips", motion.static, f"; the real ones {still.static:.3f}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=SHIPPED, type=Path, help="folder of a pipeline")
    parser.add_argument("--pictures", type=Path, help="folder for the sheets of samples")
    parser.add_argument("--samples", type=int, help="at most so many of each list, for a quick look")
    arguments = parser.parse_args()
    pipe = WanPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    listed = json.loads((DATA / "names.json").read_text(encoding="utf-8"))
    names = {"seen": listed["seen"], "unseen": [row["caption"] for row in rows("pictures")]}
    if arguments.pictures:
        draw_sheets(pipe, names, arguments.pictures)
    print(f"samples: {SIZE}x{SIZE}, {STEPS} steps, guidance {GUIDANCE}, seeds from 0")
    figures = measure(pipe, names, set(listed["words of training"]), arguments.samples)
    missed = [
        f"{name} {figures[name]:.3f}, asked: at {kind} {bound}"
        for name, (bound, kind) in BOUNDS.items()
        if (figures[name] < bound if kind == "least" else figures[name] > bound)
    ]
    print("missed: " + "; ".join(missed) if missed else "every bound holds")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
