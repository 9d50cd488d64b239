"""A first run.yaml for a family."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ..errors import UserError
from ..families import name_of, resolve
from ..words import Word

if TYPE_CHECKING:
    from ..families.base import Checkpoint, Family


@dataclass(frozen=True)
class InitRequest:
    """Which family, and which of its checkpoints."""

    family: Annotated[str, Word("its name, as `omnitune models` lists it")]
    variant: Annotated[str | None, Word("of its checkpoints, as `omnitune models` lists them")] = None


def init(request: InitRequest) -> str:
    """Write a commented run.yaml with the published defaults of a variant, by default the family's first."""
    family = resolve(request.family)
    variant = find_variant(family, request.variant)
    d = variant.defaults
    if d is None:
        return _conversations(family, variant)
    flows = [", ".join(f"{key}: {value}" for key, value in one.items()) for one in variant.conditions]
    conditions = "".join(f"  - {{{flow}}}\n" for flow in flows)
    levels = f", timesteps: {d.timesteps}, shift: {d.shift_text}" if d.objective == "flow_matching" else ""
    clip = d.size.count("x") == 2
    text = ""
    if family.text_option:
        length = getattr(family.Options(), family.text_option)
        text = f"  options: {{{family.text_option}: {length}}}    # tokens that a caption is cut to\n"
    size = f"sizes: [{d.area}]" if d.one_size else f"area: {d.area}"
    media = "".join(f"  {name}: [{name}.png]    # one for each prompt\n" for name in variant.media)
    return f"""\
# omnitune run: {family.name} ({", ".join(family.tasks)}). First `omnitune check` and `omnitune plan` it.
model:
  family: {name_of(family)}
  path: {variant.path}    # a folder in the diffusers layout, or a hub id
  dtype: bfloat16    # float32 on a CPU
{text}
# What is learned; a shift above 1 moves training towards high noise.
objective: {{name: {d.objective}{levels}}}
conditions:
  - {{name: caption_dropout, probability: 0.1}}    # keeps guidance working
{conditions}
# First matching rule wins, the rest stays frozen. Instead of rules: `full`, or {{lora: {{rank: 32}}}}.
trainable:
  - params: [{", ".join(f'"{target}"' for target in family.lora_targets)}]
    lr: 1e-4
    lora: {{rank: 32}}
optimizer: {{name: adamw, lr: 1e-4, weight_decay: 0.01}}
schedule: {{steps: 2000, warmup: 100, decay: cosine}}

data:
  sources:
    - {{path: {"clips" if clip else "pictures"}}}    # with a .txt beside each, or metadata.jsonl
  buckets: {{frames: {list(d.frames)}, {size}}}    # 1 frame is a picture
{f"  fps: {d.fps:g}    # clips are resampled to the rate the model was trained at" if clip else ""}
  batch_size: 4    # what the optimizer sees, over all devices
  cache: .cache    # encoded latents and texts, shared between runs

checkpoint: {{every: 500, keep: 3}}
validation:
  every: 500
  prompts: [a fox runs through snow]
{media}  size: {d.size}
  guidance: {d.guidance:g}
{f"  fps: {d.fps:g}" if clip else ""}
parallel: {{micro_batch_size: 1}}    # smaller takes less memory and learns the same
""".replace("\n\n  batch_size", "\n  batch_size").replace("\n\nparallel", "\nparallel")


def _conversations(family: "type[Family]", variant: "Checkpoint") -> str:
    return f"""\
# omnitune run: {family.name} ({", ".join(family.tasks)}). First `omnitune check` and `omnitune plan` it.
model:
  family: {name_of(family)}
  path: {variant.path}    # a folder as save_pretrained writes it, or a hub id
  dtype: bfloat16    # float32 on a CPU

objective: {{name: causal_lm}}
# `full`, `{{lora: ...}}` or rules; with either word the vision tower and the projector stay frozen.
trainable: {{lora: {{rank: 16}}, lr: 1e-4}}
freeze_vision_tower: true
freeze_multi_modal_projector: true
freeze_language_model: false
optimizer: {{name: adamw, weight_decay: 0}}
schedule: {{steps: 1000, warmup: 30, decay: cosine}}

data:
  name: conversations
  sources:
    - {{path: train.json}}    # sharegpt, messages or alpaca; or a folder with dataset_info.json
  max_length: 2048    # tokens of a row, pictures among them; nothing is ever cut
  too_long: drop    # or shrink: pictures are made smaller until the row fits
  batch_size: 16    # rows the optimizer sees, over all devices
  cache: .cache    # what the frozen tower gives, shared between runs

checkpoint: {{every: 200, keep: 3}}
validation:
  every: 200
  prompts: ["What is in this picture?"]
  images: [fox.png]    # one for each prompt
parallel: {{micro_batch_size: 1}}    # smaller takes less memory and learns the same
"""


def find_variant(family: "type[Family]", name: str | None) -> "Checkpoint":
    if name is not None and name not in family.variants:
        raise UserError(
            f"--variant: {name!r} is not one of {family.name}; choose from {', '.join(family.variants)}"
        )
    return family.checkpoint(name)
