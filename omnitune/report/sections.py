"""The sections of the report that are words and tables."""

import json
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from .contents import Contents, Record
from .markup import count, duration, extent, note, short, size, table, text

MAX_ITEMS = 50
"""Items of the data that are listed."""


def tiles(run: Contents) -> str:
    """The run at a glance."""
    found = [_trained(run), _loss(run), _speed(run), _memory(run), _data(run)]
    body = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{text(value)}<small>{text(more)}</small></dd></div>'
        for name, value, more in (tile for tile in found if tile)
    )
    return f'<dl class="tiles">{body}</dl>' if body else ""


def _trained(run: Contents) -> tuple[str, str, str] | None:
    if not run.metrics:
        return None
    last, planned = run.metrics[-1], run.stated("schedule", "steps")
    parts = [f"of {int(planned):,}"] if planned and planned.isdigit() and int(planned) != last["step"] else []
    parts += [count(last["samples"], "sample")] if "samples" in last else []
    parts += [f"{short(last['epoch'], 3)} epochs"] if "epoch" in last else []
    return "Trained", count(last["step"], "step"), ", ".join(parts)


def _loss(run: Contents) -> tuple[str, str, str] | None:
    losses = [r["loss"] for r in run.metrics if "loss" in r]
    if not losses:
        return None
    num = max(1, len(losses) // 10)
    first, last = fmean(losses[:num]), fmean(losses[-num:])
    return (
        "Loss",
        f"{short(first, 3)} → {short(last, 3)}",
        f"means of the first and last {count(num, 'step')}" if num > 1 else "first and last step",
    )


def _speed(run: Contents) -> tuple[str, str, str] | None:
    rates = [r["samples_per_second"] for r in run.metrics if "samples_per_second" in r]
    if not rates:
        return None
    return (
        "Speed",
        f"{short(median(rates), 3)} samples/s",
        f"{duration(sum(r.get('seconds', 0) for r in run.metrics))} of steps",
    )


def _memory(run: Contents) -> tuple[str, str, str] | None:
    peaks = [r["peak_memory_bytes"] for r in run.metrics if "peak_memory_bytes" in r]
    return ("Peak memory", size(max(peaks)), str(run.manifest.get("device", ""))) if peaks else None


def _data(run: Contents) -> tuple[str, str, str] | None:
    if not run.items:
        return None
    return "Data", count(len(run.items), "item"), count(len({r["bucket"] for r in run.items}), "bucket")


def results(rows: Sequence[Record]) -> str:
    """What was measured before and after training."""
    if not rows:
        return ""
    cells = [
        [
            text(r["name"]),
            _value(r, "before"),
            f"<b>{_value(r, 'after')}</b>",
            _verdict(r),
            f"{text(r['better'])} is better",
        ]
        for r in rows
    ]
    return table(["Measure", "Before", "After", "Change", ""], cells, "numbers")


def _value(row: Record, key: str) -> str:
    return "—" if row[key] is None else text(f"{short(row[key])} {row.get('unit') or ''}".strip())


def _verdict(row: Record) -> str:
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return "—"
    change = f" by {short(abs(after / before - 1) * 100, 3)} %" if before else ""
    if after == before:
        return "unchanged"
    good = (after < before) == (row["better"] == "lower")
    return f'<span class="{"good" if good else "bad"}">{"▲ better" if good else "▼ worse"}{change}</span>'


def data(items: Sequence[Record]) -> str:
    """What was trained on."""
    if not items:
        return ""
    captions = [r["caption"] for r in items]
    told = [f"{len(items) - captions.count(''):,} of {count(len(items), 'item')} have a caption"]
    told.append(f"{len({c for c in captions if c}):,} of them differ")
    if lengths := sorted(len(c.split()) for c in captions if c):
        told.append(
            f"{lengths[0]} to {lengths[-1]} words, half of them at most {lengths[(len(lengths) - 1) // 2]}"
        )
    return f"<p>{'; '.join(told)}.</p>" + _buckets(items) + _items(items)


def _buckets(items: Sequence[Record]) -> str:
    counts = Counter(r["bucket"] for r in items)
    most = max(counts.values())
    rows = [
        [
            text(extent(bucket)),
            f"{num:,}",
            f'<span class="bar" style="width:{100 * num / most:.1f}%"></span>',
        ]
        for bucket, num in sorted(counts.items(), key=lambda pair: -pair[1])
    ]
    return table(["Bucket", "Items", ""], rows, "buckets")


def _items(items: Sequence[Record]) -> str:
    rows = [[text(r["id"]), text(r["bucket"]), text(r["caption"])] for r in items[:MAX_ITEMS]]
    more = (
        note(f"The first {MAX_ITEMS} of {len(items):,}; all stand in data.jsonl.")
        if len(items) > MAX_ITEMS
        else ""
    )
    listed = table(["Item", "Bucket", "Caption"], rows, "items")
    return f"<details><summary>Items</summary>{listed}{more}</details>"


def weights(run: Contents) -> str:
    """Where the results lie, and how they are used."""
    parts = []
    if run.weights:
        rows = [[text(path), size((run.folder / path).stat().st_size)] for path in run.weights]
        parts.append(table(["File, within the run folder", "Size"], rows, "files"))
        if any(path.parts[0] == "weights-raw" for path in run.weights):
            parts.append(note("weights/ holds the moving average, weights-raw/ what it is the average of."))
        if code := snippet(run):
            parts.append(f"<p>In the run folder, with diffusers:</p><pre><code>{text(code)}</code></pre>")
    else:
        parts.append(
            note("Nothing is exported yet; it is when the last step is done, or by `omnitune export`.")
        )
    if run.checkpoints:
        listed = ", ".join(f"{step:,}" for step in run.checkpoints)
        parts.append(f"<p>Checkpoints to go on from, in checkpoints/: after {listed} steps.</p>")
    return "\n".join(parts)


def snippet(run: Contents) -> str:
    """The lines that load what was exported into a diffusers pipeline."""
    imports, made, passed, adapters = {"diffusers": ["DiffusionPipeline"]}, [], [], []
    for path in run.weights:
        if len(path.parts) == 2 and path.parts[0] == "weights" and path.suffix == ".safetensors":
            second = ", load_into_transformer_2=True" if path.stem.endswith("_2") else ""
            adapters.append(f'pipe.load_lora_weights("weights", weight_name={json.dumps(path.name)}{second})')
        if len(path.parts) == 3 and path.parts[0] == "weights" and path.name == "config.json":
            library, cls = _network_class(json.loads((run.folder / path).read_text(encoding="utf-8")))
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


def _network_class(config: Record) -> tuple[str, str]:
    if "_class_name" in config:
        return "diffusers", config["_class_name"]
    return "transformers", config["architectures"][0]


def manifest(values: Record) -> str:
    rows = [[text(key), "—" if value is None else text(value)] for key, value in flat(values)]
    return table([], rows, "manifest") if rows else ""


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything nested."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [
            found for key, child in pairs for found in flat(child, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value)] if prefix else []


def configuration(config: str) -> str:
    return f'<pre class="config"><code>{text(config.rstrip())}</code></pre>'
