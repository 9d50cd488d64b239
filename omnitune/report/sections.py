"""What the sections of the report say, worked out from what lies in the run folder."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

from ..progress import clock
from .contents import Contents, Record
from .formats import number_of, short, size

Tile = tuple[str, str, str]
"""A name, a value, and what there is to say of it."""


def tiles(run: Contents) -> Iterator[Tile]:
    """Yield the run at a glance."""
    if run.metrics:
        last, planned = run.metrics[-1], run.stated("schedule", "steps")
        parts = [f"of {planned:,}"] if planned and planned != last["step"] else []
        parts += [number_of(last["samples"], "sample")] if "samples" in last else []
        parts += [f"{short(last['epoch'], 3)} epochs"] if "epoch" in last else []
        yield "Trained", number_of(last["step"], "step"), ", ".join(parts)
    if losses := run.column("loss"):
        num = max(1, len(losses) // 10)
        first, after = fmean(losses[:num]), fmean(losses[-num:])
        of = f"means of the first and last {number_of(num, 'step')}" if num > 1 else "first and last step"
        yield "Loss", f"{short(first, 3)} → {short(after, 3)}", of
    if rates := run.column("samples_per_second"):
        spent = f"{clock(sum(run.column('seconds')))} of steps"
        yield "Speed", f"{short(median(rates), 3)} samples/s", spent
    if peaks := run.column("peak_memory_bytes"):
        yield "Peak memory", size(max(peaks)), str(run.manifest.get("device", ""))
    if run.items:
        yield "Data", number_of(len(run.items), "item"), number_of(len(buckets(run.items)), "bucket")


def captions(items: Sequence[Record]) -> str:
    """Say how many items have a caption, and how long those are."""
    stated = [r["caption"] for r in items if r["caption"]]
    parts = [f"{len(stated):,} of {number_of(len(items), 'item')} have a caption"]
    parts.append(f"{len(set(stated)):,} of them differ")
    if lengths := sorted(len(caption.split()) for caption in stated):
        half = lengths[(len(lengths) - 1) // 2]
        parts.append(f"{lengths[0]} to {lengths[-1]} words, half of them at most {half}")
    return "; ".join(parts)


def buckets(items: Sequence[Record]) -> list[tuple[str, int]]:
    """Buckets and how many items each has, the fullest first."""
    return Counter(r["bucket"] for r in items).most_common()


def snippet(run: Contents) -> str:
    """The lines that load what was exported into a diffusers pipeline."""
    imports, made, passed, adapters = {"diffusers": ["DiffusionPipeline"]}, [], [], []
    for path in run.weights:
        if len(path.parts) == 2 and path.parts[0] == "weights" and path.suffix == ".safetensors":
            second = ", load_into_transformer_2=True" if path.stem.endswith("_2") else ""
            adapters.append(f'pipe.load_lora_weights("weights", weight_name={json.dumps(path.name)}{second})')
        if len(path.parts) == 3 and path.parts[0] == "weights" and path.name == "config.json":
            config = json.loads((run.folder / path).read_text(encoding="utf-8"))
            library = "diffusers" if "_class_name" in config else "transformers"
            cls = config["_class_name"] if "_class_name" in config else config["architectures"][0]
            component = path.parts[1]
            if cls not in imports.setdefault(library, []):
                imports[library].append(cls)
            made.append(f'{component} = {cls}.from_pretrained("weights/{component}")')
            passed.append(f", {component}={component}")
    if not made and not adapters:
        return ""
    model = json.dumps(run.stated("model", "path") or "THE MODEL IT STARTED FROM", ensure_ascii=False)
    lines = [f"from {library} import {', '.join(names)}" for library, names in imports.items()]
    return "\n".join(
        [*lines, *made, f"pipe = DiffusionPipeline.from_pretrained({model}{''.join(passed)})", *adapters]
    )


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything nested."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [
            found for key, child in pairs for found in flat(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)] if prefix else []
