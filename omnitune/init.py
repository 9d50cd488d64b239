"""A first run.yaml for a family, and the table of families."""

from typing import TYPE_CHECKING

from .families import REGISTRY, resolve

if TYPE_CHECKING:
    from .families.base import Family


def text(family: "type[Family]") -> str:
    """A commented run.yaml with the family's published defaults."""
    d = family.defaults
    return f"""\
# omnitune run: {family.name} ({", ".join(family.tasks)}). First `omnitune check` and `omnitune plan` it.
model:
  family: {family.name}
  path: {d.path}    # a folder in the diffusers layout, or a hub id
  dtype: bfloat16    # float32 on a CPU

# What is learned: a straight path from data to noise; shift above 1 moves training towards high noise.
objective: {{name: flow_matching, timesteps: {d.timesteps}, shift: {d.shift:g}}}
conditions:
  - {{name: caption_dropout, probability: 0.1}}    # keeps guidance working

# First matching rule wins, the rest stays frozen. Instead of rules: `full`, or {{lora: {{rank: 32}}}}.
trainable:
  - params: [{", ".join(f'"{target}"' for target in family.lora_targets)}]
    lr: 1e-4
    lora: {{rank: 32}}
optimizer: {{name: adamw, lr: 1e-4, weight_decay: 0.01}}
schedule: {{steps: 2000, warmup: 100, decay: cosine}}

data:
  sources:
    - {{path: clips}}    # media with a .txt beside each, or metadata.jsonl / metadata.csv
  buckets: {{frames: {list(d.frames)}, area: {d.area}}}    # 1 frame is a picture
  fps: {d.fps:g}    # clips are resampled to the rate the model was trained at
  batch_size: 4    # what the optimizer sees, over all devices
  cache: .cache    # encoded latents and texts, shared between runs

checkpoint: {{every: 500, keep: 3}}
validation:
  every: 500
  prompts: [a fox runs through snow]
  size: {d.size}
  guidance: {d.guidance:g}
  fps: {d.fps:g}
parallel: {{micro_batch_size: 1}}    # smaller takes less memory and learns the same
"""


def table() -> str:
    """What each family can do, one block each."""
    blocks = []
    for name in REGISTRY:
        family = resolve(name)
        shown = {
            "tasks": ", ".join(family.tasks),
            "methods": f"lora ({', '.join(family.adapter_components)}), full",
            "sizes": family.defaults.rule,
            "lora targets": ", ".join(family.lora_targets),
            "options": ", ".join(family.Options.__dataclass_fields__) or "none",
            "published": family.defaults.path,
            "licence": family.licence,
        }
        blocks.append(name + "\n" + "".join(f"  {key}: {value}\n" for key, value in shown.items()))
    return "\n".join(blocks)
