"""What is known of each type of vision-language model: its parts, its prompt, and what it can do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from ...errors import UserError
from ...stages import is_under


@dataclass(frozen=True)
class Cut:
    """Where the output of a frozen vision tower is taken, to be stored once and played back."""

    inputs: tuple[str, ...]
    """Modules whose first argument (or keyword, as `qformer:encoder_hidden_states`) is everything that leaves
    the tower: given these, nothing that the parameters of the role `vision_tower` compute has an effect. A
    module is called once for all pictures and once for all clips of a batch, the rows' one after another."""
    by_row: bool = False
    """Whether a row without pictures has a place in these arguments too, (B, pictures, ...)."""


@dataclass(frozen=True)
class VlmType:
    """One model type, by the names that `named_parameters()` of the loaded model has."""

    roles: Mapping[str, tuple[str, ...]]
    """Role -> modules and parameters, disjoint and exhaustive; the language model's module is its first."""
    prompt: str | None = None
    """Chat template where the published processor has none; it is the stated format of prompts."""
    unseen: str | None = None
    """Modules that a row without pictures skips when alone, and is not to feel in a batch with others."""
    text_only: bool = True
    """Whether an item may be without a picture or a clip."""
    packing: str | None = "nothing is known of how its tokens attend to each other"
    """Why several conversations cannot share a row; None where they can."""
    cut: Cut | None = None
    uncut: str = "nothing is known of what leaves its vision tower"
    """Why there is no cut, where there is none."""


SAID = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
# Every picture comes first, as the processor has it; what follows is the text, and the answer in a new line.
PALIGEMMA = (
    SAID
    + """\
{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ said(message['content']) + eos_token }}{%- endgeneration -%}
{%- else -%}{{ said(message['content']) + '\\n' }}{%- endif -%}
{%- endfor -%}
"""
)
# The processors of BLIP put the picture's tokens before the text by themselves.
BLIP_2 = (
    SAID
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ ' ' + said(message['content']) + eos_token }}{%- endgeneration -%}
{%- elif message['role'] == 'system' -%}{{ said(message['content']) + ' ' }}
{%- else -%}{{ 'Question: ' + said(message['content']) + ' Answer:' }}{%- endif -%}
{%- endfor -%}
"""
)
INSTRUCTBLIP = BLIP_2.replace("'Question: ' + ", "").replace(" + ' Answer:'", "")


def _llava(*others: str, tower: tuple[str, ...] = ("vision_tower",)) -> dict[str, tuple[str, ...]]:
    """Roles of the layout of LLaVA; `others` are bare parameters, each a role of its own."""
    return {
        "vision_tower": tuple(f"model.{name}" for name in tower),
        "multi_modal_projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model", "lm_head"),
        **{name: (f"model.{name}",) for name in others},
    }


def _qwen(
    *tower: str, mergers: tuple[str, ...] = ("merger",), others: tuple[str, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """Roles of the layout of Qwen-VL, where the tower and its mergers are in one module."""
    return {
        "vision_tower": tuple(f"model.visual.{name}" for name in tower),
        "multi_modal_projector": tuple(f"model.visual.{name}" for name in mergers),
        "language_model": ("model.language_model", "lm_head"),
        **{name: (f"model.{name}",) for name in others},
    }


IDEFICS_ROLES = {
    "vision_tower": ("model.vision_model",),
    "multi_modal_projector": ("model.connector",),
    "language_model": ("model.text_model", "lm_head"),
}
BLIP_ROLES = {
    "vision_tower": ("vision_model",),
    "multi_modal_projector": ("query_tokens", "qformer", "language_projection"),
    "language_model": ("language_model",),
}
GLM_TOWER = (
    "patch_embed", "embeddings", "post_conv_layernorm", "blocks", "post_layernorm", "downsample",
)  # fmt: skip

PROJECTOR = Cut(("model.multi_modal_projector",))
MERGER = Cut(("model.visual.merger",))
CONNECTOR = Cut(("model.connector",))
QFORMER = Cut(("qformer:encoder_hidden_states",))
BOTH_WAYS = "the tokens of a picture attend to each other in both directions, found by their types in a row"
STATE = "its linear attention layers carry a state from each token to the next"
CHUNKS = "its attention is cut in chunks that are counted from the start of a row"
SOUND = "its positions may run over the sound of a clip"
UNTRIED = "it was not tried with this type"


def _packs(roles: Mapping[str, tuple[str, ...]], cut: Cut) -> VlmType:
    return VlmType(roles, packing=None, cut=cut)


def _deepstack(merger_list: str, packing: str | None, *others: str) -> VlmType:
    """The layout of Qwen3-VL, whose mergers read three further layers of the tower beside the last."""
    roles = _qwen("patch_embed", "pos_embed", "blocks", mergers=("merger", merger_list), others=others)
    cut = Cut(("model.visual.merger", *(f"model.visual.{merger_list}.{i}" for i in range(3))))
    return VlmType(roles, packing=packing, cut=cut)


def _known(roles: Mapping[str, tuple[str, ...]]) -> VlmType:
    """A type of which the parts are known, and no more."""
    return VlmType(roles, packing=UNTRIED, uncut=UNTRIED)


TYPES: Mapping[str, VlmType] = {
    "qwen2_vl": _packs(_qwen("patch_embed", "blocks"), MERGER),
    "qwen2_5_vl": _packs(_qwen("patch_embed", "blocks"), MERGER),
    "qwen3_vl": _deepstack("deepstack_merger_list", None),
    "qwen3_vl_moe": _deepstack("deepstack_merger_list", None),
    "qwen3_5": VlmType(_qwen("patch_embed", "pos_embed", "blocks"), packing=STATE, cut=MERGER),
    "qwen3_5_moe": VlmType(_qwen("patch_embed", "pos_embed", "blocks"), packing=STATE, uncut=UNTRIED),
    "qwen2_5_omni_thinker": VlmType(
        _qwen("patch_embed", "blocks", others=("audio_tower",)), packing=SOUND, cut=MERGER
    ),
    "qwen3_omni_moe_thinker": _known(
        _qwen(
            "patch_embed", "pos_embed", "blocks", mergers=("merger", "merger_list"), others=("audio_tower",)
        )
    ),
    "glm4v": VlmType(
        _qwen(*GLM_TOWER), packing="it cannot tell the pictures of a row from its clips", cut=MERGER
    ),
    "glm4v_moe": _known(_qwen(*GLM_TOWER)),
    "glm46v": _known(_qwen(*GLM_TOWER)),
    "glm_ocr": _known(_qwen("patch_embed", "blocks", "post_layernorm", "downsample")),
    "exaone4_5": _known(_qwen("patch_embed", "blocks")),
    "llava": _packs(_llava(), PROJECTOR),
    "llava_next": _packs(_llava("image_newline"), PROJECTOR),
    "llava_next_video": _known(_llava("image_newline")),
    "llava_onevision": _packs(_llava("image_newline"), PROJECTOR),
    "video_llava": _packs(_llava(tower=("video_tower", "image_tower")), PROJECTOR),
    "vipllava": _known(_llava()),
    "fast_vlm": _packs(_llava(), PROJECTOR),
    "internvl": _packs(_llava(), PROJECTOR),
    "mistral3": _packs(_llava(), PROJECTOR),
    "aya_vision": _known(_llava()),
    "cohere2_vision": _known(_llava()),
    "got_ocr2": _known(_llava()),
    "gemma3": VlmType(_llava(), packing=BOTH_WAYS, cut=PROJECTOR),
    "paligemma": VlmType(_llava(), PALIGEMMA, text_only=False, packing=BOTH_WAYS, cut=PROJECTOR),
    "mllama": VlmType(
        _llava(tower=("vision_model",)),
        packing="its pictures are seen by masks of cross-attention that are laid out by row",
        cut=Cut(("model.multi_modal_projector",), by_row=True),
        unseen="cross_attn",
    ),
    "llama4": VlmType(
        {
            "vision_tower": ("vision_model",),
            "multi_modal_projector": ("multi_modal_projector",),
            "language_model": ("language_model",),
        },
        packing=CHUNKS,
        cut=Cut(("multi_modal_projector",)),
    ),
    "idefics2": _known(IDEFICS_ROLES),
    "idefics3": _packs(IDEFICS_ROLES, CONNECTOR),
    "smolvlm": _packs(IDEFICS_ROLES, CONNECTOR),
    "blip-2": VlmType(
        BLIP_ROLES,
        BLIP_2,
        text_only=False,
        packing="it takes no positions, and counts them from the start of a row",
        cut=QFORMER,
    ),
    "instructblip": VlmType(
        BLIP_ROLES,
        INSTRUCTBLIP,
        text_only=False,
        packing="its Q-Former reads one question a row",
        cut=QFORMER,
    ),
}


def roles_of(model: nn.Module, roles: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Tell the role of each parameter, or raise one UserError of all that is wrong with the roles."""
    owner: dict[str, str] = {}
    loose: list[str] = []
    lines = [*_unmatched(model, roles)]
    for name, _ in model.named_parameters():
        owners = [(role, prefix) for role, prefix in _pairs(roles) if is_under(name, prefix)]
        if len(owners) > 1:
            places = " and ".join(f"{role} ({prefix})" for role, prefix in owners)
            lines.append(f"roles: {name} is in {places}; state prefixes that do not overlap")
        elif owners:
            owner[name] = owners[0][0]
        else:
            loose.append(name)
    if loose:
        more = f" and {len(loose) - 1} more are" if len(loose) > 1 else " is"
        lines.append(f"roles: {loose[0]}{more} in no role; state a prefix for each parameter")
    if lines:
        raise UserError("\n".join(lines))
    return owner


def _pairs(roles: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    return ((role, prefix) for role, prefixes in roles.items() for prefix in prefixes)


def _unmatched(model: nn.Module, roles: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """A line for each prefix that names nothing; a tied head is there under its own name too."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in model.named_modules(remove_duplicate=False)}
    for role, prefix in _pairs(roles):
        if prefix not in names:
            near = get_close_matches(prefix, names, n=1, cutoff=0)
            yield f"roles: {role}: {prefix} names no part of {type(model).__name__}; nearest: {near[0]}"


def module_tree(model: nn.Module, depth: int = 3) -> str:
    """List the parts of a model to fill `roles:` from, by full names, with their numbers of parameters."""
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        module, _, _ = name.rpartition(".")
        beside_modules = any(True for _ in model.get_submodule(module).children())
        parts = (name if beside_modules else module).split(".")
        for i in range(1, min(depth, len(parts)) + 1):
            if parts[i - 1].isdigit():
                break
            path = ".".join(parts[:i])
            sizes[path] = sizes.get(path, 0) + parameter.numel()
    width = max(map(len, sizes))
    lines = [f"  {path:{width}}  {size:,}" for path, size in sizes.items()]
    return "\n".join([*lines, "to be filled in, each parameter in one role:", FORM])


FORM = """\
  model:
    options:
      roles:
        vision_tower: []
        multi_modal_projector: []
        language_model: []"""
