"""What a run starts from beside its model: what `init_from` names, read in a format of the family."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..families.base import Family
from ..trainable.parameters import base_name
from ..trainable.rules import Claims
from . import find_format
from .base import Format, Weights

COMPARED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
"""Settings of peft that are held against the rules, through the tensors or by `_check_alphas`."""
WITHOUT_EFFECT = (
    "lora_dropout", "inference_mode", "task_type", "base_model_name_or_path", "revision", "auto_mapping",
    "peft_type", "peft_version", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config",
)  # fmt: skip
"""Settings of peft that change nothing of what a finished adapter computes."""
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base weights as they are."""


def start_format(path: Path, formats: Sequence[str]) -> Format:
    """The first of some formats that recognises what `init_from` names."""
    if not path.exists():
        raise UserError(f"init_from: {path} is not there; give a LoRA file or a folder that `export` wrote")
    found = [find_format(name, "init_format") for name in formats]
    for one in found:
        if one.folders(path) or one.files(path):
            return one
    raise UserError(f"init_from: {path} holds neither {' nor '.join(dict.fromkeys(f.holds for f in found))}")


def init_adapters(
    family: Family, path: Path, claims: Claims, formats: Sequence[str], later: bool = False
) -> None:
    """Load the files of `init_from` into the adapters that rules added, and into what they train whole.

    In a `later` phase of a run the files hold what the first one trains, and may lack what this one adds.
    """
    form, claims = start_format(path, formats), claims.all_trained
    if not form.files(path):
        return
    weights = form.read(path, family, sorted({module.split(".")[0] for module in claims.adapted}))
    if weights.adapters and not claims.adapted:
        raise UserError(
            f"init_from: {path} is a LoRA, but no rule under `trainable` adds one; give a rule `lora`"
        )
    mine = {
        name: param
        for own, param in family.components.named_parameters()
        if ".lora_" in (name := base_name(own).replace(".default.", ".")) or name in claims.direct
    }
    _check_settings(path, weights)
    tensors = weights.tensors
    _check_names(path, tensors, mine)
    _check_alphas(path, weights, claims)
    for name, tensor in tensors.items():
        mine[name].data.copy_(tensor)
    if not later and (missing := {name for name in mine if ".lora_" in name} - tensors.keys()):
        raise UserError(f"init_from: {path} lacks {min(missing)} ({len(missing)} such), which a rule adapts")


def _check_names(path: Path, tensors: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
    """Refuse tensors that have no place here, or another size."""
    if strangers := sorted(tensors.keys() - mine.keys()):
        does = "adapts" if ".lora_" in strangers[0] else "trains"
        raise UserError(f"init_from: {path} has {strangers[0]} ({len(strangers)} such), which no rule {does}")
    for name, tensor in tensors.items():
        if tensor.shape != mine[name].shape:
            here = tuple(mine[name].shape)
            how = (
                f"the rule makes it {here}; use the rank it was trained with"
                if ".lora_" in name
                else f"here it is {here}; start from a run on the same model, with the same options"
            )
            raise UserError(f"init_from: {path}: {name} is {tuple(tensor.shape)}, {how}")


def _check_settings(path: Path, weights: Weights) -> None:
    """Refuse what our adapters do not compute (rsLoRA, DoRA...), even where the tensors would fit."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    stated = {f"{c}.{name}": value for c, own in weights.settings.items() for name, value in own.items()}
    for name, value in stated.items():
        setting = name.partition(".")[2]
        if setting in (*COMPARED, *WITHOUT_EFFECT) or value == usual.get(setting) or not value:
            continue
        if setting == "init_lora_weights" and value in STARTS:
            continue
        raise UserError(
            f"init_from: {path} was trained with {name}: {value!r}, which omnitune does not compute; give a "
            "plain LoRA, or merge this one into its model and train on that"
        )


def _check_alphas(path: Path, weights: Weights, claims: Claims) -> None:
    """A LoRA of another alpha would start at another strength: refuse."""
    alphas = weights.alphas
    for module, number in claims.adapted.items():
        if module not in alphas or number < 0:  # of an earlier phase, which compared it
            continue
        lora = claims.rules[number].lora
        assert lora is not None
        stored, mine = alphas[module], lora.alpha or lora.rank
        if stored != mine:
            raise UserError(
                f"init_from: {path} has alpha {stored:g} at {module}, trainable.{number} has {mine:g}; set "
                f"alpha: {stored:g}"
            )
