"""What is known of each type of vision-language model: its parts, its prompt, and what it can do."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files

from torch import nn

from ...errors import UserError
from ...stages import is_under
from ..files import read_json

TABLE = files("omnitune.families.vlm") / "types.json"
"""The known types, each with the layout of its parts."""
PROMPTS = files("omnitune.families.vlm") / "prompts"
"""PaliGemma's has every picture first, as its processor has it; those of BLIP put the picture's tokens before
the text by themselves."""


@dataclass(frozen=True)
class Cut:
    """Where the output of a frozen vision tower is taken, to be stored once and played back."""

    inputs: tuple[str, ...]
    """Modules whose first argument (or keyword, as `qformer:encoder_hidden_states`) is everything that leaves
    the tower: given these, nothing that the parameters of the role `vision_tower` compute has an effect. A
    module is called once for all pictures and once for all clips of a batch, the rows' one after another."""
    by_row: bool = False
    """Whether a row without pictures has a place in these arguments too, (B, pictures, ...)."""


def cut_of(model: nn.Module, cut: Cut) -> Cut:
    """A cut with as many modules of each list as the model has: deeper features are taken where it says."""
    inputs: list[str] = []
    for spot in cut.inputs:
        path, _, number = spot.rpartition(".")
        if number.isdigit():
            inputs += [f"{path}.{i}" for i in range(len([*model.get_submodule(path).children()]))]
        else:
            inputs.append(spot)
    return replace(cut, inputs=tuple(dict.fromkeys(inputs)))


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
    """None where it was not tried."""


def _read_types() -> dict[str, VlmType]:
    table = read_json(TABLE)
    types = {}
    for name, entry in table["types"].items():
        own = {"packing": "it was not tried with this type", **entry}
        roles = {role: tuple(prefixes) for role, prefixes in table["layouts"][own.pop("layout")].items()}
        if "prompt" in own:
            own["prompt"] = (PROMPTS / own["prompt"]).read_text()
        if "cut" in own:
            own["cut"] = Cut(tuple(own["cut"]), own.pop("cut_by_row", False))
        types[name] = VlmType(roles, **own)
    return types


TYPES: Mapping[str, VlmType] = _read_types()


def roles_of(model: nn.Module, roles: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Tell the role of each parameter, or raise one UserError of all that is wrong with the roles."""
    pairs = [(role, prefix) for role, prefixes in roles.items() for prefix in prefixes]
    # A tied head is there under its own name too.
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= {name for name, _ in model.named_modules(remove_duplicate=False)}
    lines = []
    for role, prefix in pairs:
        if prefix not in names:
            near = get_close_matches(prefix, names, n=1, cutoff=0)
            lines.append(
                f"roles: {role}: {prefix} names no part of {type(model).__name__}; nearest: {near[0]}"
            )
    owner: dict[str, str] = {}
    loose: list[str] = []
    for name, _ in model.named_parameters():
        owners = [(role, prefix) for role, prefix in pairs if is_under(name, prefix)]
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
