"""Weights in and out: what a run starts from, and the published layout that it ends in."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder
from ..trainable.adapters import adapter_state, plain_settings

if TYPE_CHECKING:
    from ..families.base import Family
    from ..families.layout import Layout
    from ..parallel.mesh import Mesh
    from ..trainable.adapters import Claims

CARRIED = "carried/"
"""Before the names, in a checkpoint, of what trained in an earlier phase."""
LORA_FILE = "pytorch_lora_weights.safetensors"

COMPARED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
"""Settings of peft that are held against the rules, through the tensors or by `_check_scale`."""
WITHOUT_EFFECT = (
    "lora_dropout", "inference_mode", "task_type", "base_model_name_or_path", "revision", "auto_mapping",
    "peft_type", "peft_version", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config",
)  # fmt: skip
"""Settings of peft that change nothing of what a finished adapter computes."""
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base weights as they are."""


class PipelineFolders:
    """LoRA files and folders of whole components, as the pipelines of diffusers have them."""

    forms = f"{LORA_FILE} nor a component folder with config.json"

    def folders(self, path: Path) -> dict[str, Path]:
        return {p.parent.name: p.parent for p in path.glob("*/*config.json")} if path.is_dir() else {}

    def files(self, path: Path) -> list[Path]:
        stem, suffix = LORA_FILE.rsplit(".", 1)
        return [path] if path.is_file() else sorted(path.glob(f"{stem}*.{suffix}"))

    def read(
        self, file: Path, family: "Family", adapted: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return _read_lora(file, _parts(file, family, adapted))


def lora_files(path: Path | None, layout: "Layout | None" = None) -> list[Path]:
    """The files of adapters that `init_from` names: none if it names whole components alone."""
    return [] if path is None else (layout or PipelineFolders()).files(path)


def component_folders(path: Path | None, layout: "Layout | None" = None) -> dict[str, Path]:
    """Component -> folder of weights in `init_from` that takes the place of the model's own."""
    if path is None:
        return {}
    if not path.exists():
        raise UserError(f"init_from: {path} is not there; give a LoRA file or a folder that `export` wrote")
    layout = layout or PipelineFolders()
    found = layout.folders(path)
    if not found and not layout.files(path):
        raise UserError(f"init_from: {path} holds neither {layout.forms}")
    return found


def init_adapters(family: "Family", path: Path, claims: "Claims", later: bool = False) -> None:
    """Load the files of `init_from` into the adapters that rules added, and into what they train whole.

    In a `later` phase of a run the files hold what the first one trains, and may lack what this one adds.
    """
    layout = family.layout or PipelineFolders()
    files = layout.files(path)
    if not files:
        return
    claims = claims.ever
    if not claims.adapted:
        raise UserError(
            f"init_from: {files[0]} is a LoRA, but no rule under `trainable` adds one; give a rule `lora`"
        )
    mine = {
        name: param
        for own, param in family.components.named_parameters()
        if ".lora_" in (name := _published(own)) or name in claims.direct
    }
    missing = {name for name in mine if ".lora_" in name}
    for file in files:
        tensors, settings = layout.read(file, family, claims.adapted)
        _check_settings(file, settings)
        _check_names(file, tensors, mine)
        for name, tensor in tensors.items():
            mine[name].data.copy_(tensor)
        missing -= tensors.keys()
        _check_scale(file, settings, claims, {name.split(".lora_")[0] for name in tensors})
    if missing and not later:
        raise UserError(f"init_from: {path} lacks {min(missing)} ({len(missing)} such), which a rule adapts")


def _check_names(file: Path, tensors: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
    """Refuse tensors that have no place here, or another size."""
    if strangers := sorted(tensors.keys() - mine.keys()):
        does = "adapts" if ".lora_" in strangers[0] else "trains"
        raise UserError(f"init_from: {file} has {strangers[0]} ({len(strangers)} such), which no rule {does}")
    for name, tensor in tensors.items():
        if tensor.shape != mine[name].shape:
            here = tuple(mine[name].shape)
            how = (
                f"the rule makes it {here}; use the rank it was trained with"
                if ".lora_" in name
                else f"here it is {here}; start from a run on the same model, with the same options"
            )
            raise UserError(f"init_from: {file}: {name} is {tuple(tensor.shape)}, {how}")


def _parts(file: Path, family: "Family", modules: Collection[str]) -> Mapping[str, str]:
    """What a file calls components -> what they are called here."""
    adapted = sorted({module.split(".")[0] for module in modules})
    known = family.adapter_files(family.adapter_components)
    expected = family.adapter_files(adapted)
    if file.name in expected:
        return expected[file.name]
    if file.name in known or len(expected) > 1:
        raise UserError(
            f"init_from: {file} is not of what the rules adapt, {', '.join(adapted)}; give "
            f"{' and '.join(expected)}, or rules for what it is of"
        )
    return next(iter(expected.values()))  # a name of the user's own


def _read_lora(file: Path, parts: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a LoRA file, and the adapter settings that it was written with, by our names."""

    def ours(name: str) -> str:
        part, dot, rest = name.partition(".")
        return f"{parts.get(part, part)}{dot}{rest}"

    try:
        with safe_open(file, framework="pt") as stream:
            tensors = {ours(name): stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a dict
            settings = json.loads((stream.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"init_from: {file} cannot be read: {error}") from error
    return tensors, {ours(name): value for name, value in settings.items()}


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what our adapters do not compute (rsLoRA, DoRA...), even where the tensors would fit."""
    plain = plain_settings()
    for name, value in settings.items():
        setting = name.rpartition(".")[2]
        if setting in (*COMPARED, *WITHOUT_EFFECT) or value == plain.get(setting) or not value:
            continue
        if setting == "init_lora_weights" and value in STARTS:
            continue
        raise UserError(
            f"init_from: {file} was trained with {name}: {value!r}, which omnitune does not compute; give a "
            "plain LoRA, or merge this one into its model and train on that"
        )


def _check_scale(file: Path, settings: Mapping[str, Any], claims: "Claims", modules: Collection[str]) -> None:
    """A LoRA of another alpha would start at another strength: refuse."""
    for module, number in claims.adapted.items():
        if module not in modules or number < 0:  # of an earlier phase, which compared it
            continue
        lora = claims.rules[number].lora
        assert lora is not None
        stored, mine = _stored_alpha(settings, module, lora.rank), lora.alpha or lora.rank
        if stored != mine:
            raise UserError(
                f"init_from: {file} has alpha {stored:g} at {module}, trainable.{number} has {mine:g}; set "
                f"alpha: {stored:g}"
            )


def _stored_alpha(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The alpha of a module in a file's settings, or the rank where it states none, as diffusers loads it."""
    component, _, name = module.partition(".")
    patterns: Mapping[str, float] = settings.get(f"{component}.alpha_pattern", {})
    own = (a for pattern, a in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name))
    return next(own, settings.get(f"{component}.lora_alpha", rank))


def _published(name: str) -> str:
    """`transformer.blocks.0.attn1.to_q.lora_A.default.weight` as files of adapters spell it."""
    return _plain(name.replace(".default.", "."))


def export(family: "Family", claims: "Claims", mesh: "Mesh", folder: Path, merged: bool = False) -> None:
    """Write what was trained in the family's published layout; all ranks call it, the main rank writes.

    `merged` writes whole networks, adapters added to their weights.
    """
    adapters: dict[str, dict[str, Tensor]] = {}
    full: dict[str, dict[str, Tensor]] = {}
    for component, module in family.components.items():
        if component not in claims.components:
            continue
        state = module.state_dict()
        if any(m.startswith(f"{component}.") for m in claims.adapted):
            lora = mesh.full((n, t) for n, t in state.items() if ".lora_" in n)
            if mesh.main:
                adapters[component] = adapter_state(module, lora)
        if any(n.startswith(f"{component}.") for n in claims.direct):
            named = ((n.replace(".base_layer.", "."), t) for n, t in state.items() if ".lora_" not in n)
            whole = family.exports_whole
            full[component] = mesh.full(
                (n, t) for n, t in named if whole or f"{component}.{n}" in claims.direct
            )
    if mesh.main:
        with atomic_folder(folder) as temporary:
            (family.export_merged if merged else family.export)(temporary, adapters, full)


def load_trained(family: "Family", tensors: dict[str, Tensor], average: bool) -> None:
    """Put a checkpoint's weights (the average where asked for and kept) into a family with its adapters."""
    prefix = "ema/" if average and any(name.startswith("ema/") for name in tensors) else "weights/"
    # A layer that an earlier phase trained may carry an adapter now.
    params = {_plain(name): param for name, param in family.components.named_parameters()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            for start in (prefix, CARRIED):
                if name.startswith(start):
                    params[_plain(name.removeprefix(start))].copy_(tensor)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def carried_names(family: "Family", claims: "Claims") -> list[str]:
    """Parameters that trained in an earlier phase and do not in this one, as they are called now."""
    return [
        name
        for name, _ in family.components.named_parameters()
        if _plain(name) in claims.carried or name.split(".lora_")[0] in claims.kept
    ]
