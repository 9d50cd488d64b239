"""How much longer a step of `omnitune train` takes than the same step in plain PyTorch, for every family.

    OMP_NUM_THREADS=2 python benchmarks/families.py                   # the first variant of each
    python benchmarks/families.py flux wan:i2v --steps 20             # these, 20 pairs each

As `step_overhead.py` measures it, in fp32, on two samples of one caption, latents and texts cached. What a
variant with given frames encodes anew in each step (CogVideoX's noised picture) counts as ours.
"""

import argparse
import statistics
import sys
from typing import Any

from step_overhead import Pairs, alternate
from tiny_run import Settings, machine, verdict, wan, written_run

from omnitune.families import REGISTRY, resolve
from omnitune.families.base import Denoiser

BOUND = 1.05
LEAST_SECONDS = 0.1
WARM_UP = 5
PAIRS = 60
CLIP = {"frames": 9, "size": "128x128"}
PICTURE = {"frames": 1, "size": "256x256"}
# Steps of 100 to 300 ms on two threads.
SIZES: dict[str, dict[str, Any]] = {
    "hunyuan_video": CLIP | {
        "transformer": {
            "num_layers": 4, "num_single_layers": 4, "num_attention_heads": 4, "attention_head_dim": 64,
            "rope_axes_dim": [16, 24, 24],
        }
    },
    "cogvideox": CLIP | {
        "transformer": {
            "num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 64,
            "sample_frames": 9, "sample_height": 16, "sample_width": 16,
        }
    },
    "cogview4": PICTURE | {
        "transformer": {"num_layers": 3, "num_attention_heads": 8, "attention_head_dim": 64}
    },
    "flux": PICTURE | {
        "transformer": {
            "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4, "attention_head_dim": 64,
            "axes_dims_rope": [16, 24, 24],
        }
    },
    "wan": CLIP | {"transformer": wan(layers=3, heads=8, head_dim=64)},
    "ltx_video": CLIP | {
        "size": "256x256",
        "transformer": {
            "num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 64, "cross_attention_dim": 512,
        },
    },
}  # fmt: skip
# These attend to a picture's embeddings, by a projection as wide as the network.
SEEING = {"transformer": {**SIZES["wan"]["transformer"], "added_kv_proj_dim": 512}}
VARIANT_SIZES = {
    ("wan", "i2v"): SEEING,
    ("wan", "i2v-720p"): SEEING,
    ("wan", "flf2v"): SEEING,
    ("wan", "ti2v-5b"): {"size": "256x256"},
}


def measure(family: str, variant: str, num_pairs: int) -> Pairs:
    sizes = SIZES[family] | VARIANT_SIZES.get((family, variant), {})
    # One step more than is counted: the last also writes the checkpoint.
    settings = Settings(
        **sizes, dtype="float32", steps=WARM_UP + num_pairs + 1, family=family, variant=variant,
        batch_size=2, num_samples=2,
    )  # fmt: skip
    with written_run(settings) as run:
        return alternate(run, WARM_UP)


def chosen(word: str) -> tuple[str, str]:
    """Family and variant of FAMILY or FAMILY:VARIANT."""
    family, _, variant = word.partition(":")
    if family not in REGISTRY:
        raise argparse.ArgumentTypeError(f"{family!r} is not a family; choose from {', '.join(REGISTRY)}")
    variants = resolve(family).variants
    if variant and variant not in variants:
        raise argparse.ArgumentTypeError(
            f"{family} has no variant {variant!r}; choose from {', '.join(variants)}"
        )
    return family, variant or next(iter(variants))


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("families", nargs="*", type=chosen, metavar="FAMILY[:VARIANT]")
    arguments.add_argument("--steps", type=int, default=PAIRS, help="pairs that are counted, of each family")
    given = arguments.parse_args()
    if given.steps < 1:
        arguments.error(f"--steps: {given.steps} is below 1")
    print(machine())
    ratios, too_short = {}, []
    for family, variant in given.families or map(
        chosen, (n for n in REGISTRY if issubclass(resolve(n), Denoiser))
    ):
        pairs = measure(family, variant, given.steps)
        name, seconds = f"{family} {variant}", statistics.median(pairs.bare)
        ratios[name] = pairs.ratio
        print(
            f"{name}: median of {given.steps} ratios {pairs.ratio:.4f}, bare step {seconds * 1000:.0f} ms",
            flush=True,
        )
        if seconds < LEAST_SECONDS:
            too_short.append(name)
    if too_short:
        print(f"too short to say anything, below {LEAST_SECONDS} s: {', '.join(too_short)}")
    worst = max(ratios, key=lambda name: ratios[name])
    return verdict(
        f"families: worst ratio {ratios[worst]:.4f} ({worst}), bound {BOUND}",
        ratios[worst] <= BOUND and not too_short,
    )


if __name__ == "__main__":
    sys.exit(main())
