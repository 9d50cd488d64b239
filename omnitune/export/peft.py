"""The layout of peft and transformers: an adapter beside its base model, or a whole model."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..families.base import Family
from ..families.vlm.family import MODEL, Vlm
from ..families.vlm.tokens import OPTION, added_tokens, check_tokens, is_tied, tied_names
from .base import Format, Weights, parse_settings, read_files

ADAPTER, ADAPTER_CONFIG, CONFIG = "adapter_model.safetensors", "adapter_config.json", "config.json"
BESIDE = "trained.safetensors"
"""Parts that were trained whole beside an adapter and that peft has no place for, by the model's names."""
PREFIX = "base_model.model."
OF_WHOLE_PARTS = ("modules_to_save", "ensure_weight_tying")
"""Settings of peft that say which parts were trained whole; the tensors say it too."""


class Peft(Format):
    name = "peft"
    holds = f"{ADAPTER} nor {CONFIG}"
    whole = False

    def folders(self, path: Path) -> dict[str, Path]:
        has = {p.name for p in path.iterdir()} if path.is_dir() else set[str]()
        if has >= {CONFIG, ADAPTER} and has & {"model.safetensors", "model.safetensors.index.json"}:
            raise UserError(
                f"init_from: {path} holds a whole model and an adapter; give a folder with one of them"
            )
        # Some tools leave the config of the base beside an adapter.
        return {MODEL: path} if CONFIG in has and ADAPTER not in has else {}

    def files(self, path: Path) -> list[Path]:
        folder = path.parent if path.name == ADAPTER else path
        return [file for name in (ADAPTER, BESIDE) if (file := folder / name).is_file()]

    def read(self, path: Path, family: Family, components: Collection[str]) -> Weights:
        assert isinstance(family, Vlm), family.name
        tensors: dict[str, Tensor] = {}
        settings: dict[str, Any] = {}
        notes: dict[str, str] = {}
        for file, found, metadata in read_files(self.files(path)):
            tensors |= _under_listed_names(file, found, tied_names(family.model))
            notes |= {key: text for key, text in metadata.items() if key != "format"}
            if file.name == ADAPTER:
                settings = _settings(file.with_name(ADAPTER_CONFIG))
                _check_tokens(file.parent, family, tensors.keys())
        return Weights(tensors, {MODEL: settings}, notes)

    def read_folder(self, component: str, folder: Path, family: Family) -> Mapping[str, Tensor]:
        assert isinstance(family, Vlm), family.name
        files = replace(family.files, start=folder)
        return files.load(files.model_class, family.dtype).state_dict()

    def write(self, folder: Path, family: Family, weights: Weights) -> None:
        assert isinstance(family, Vlm), family.name
        if MODEL in weights.adapters:
            _write_adapter(folder, family, weights)
        else:
            base_model(family, weights.full.get(MODEL, {}), family.dtype).save_pretrained(folder)
        # With the chat template, so that the folder answers as it was trained.
        family.files.processor.save_pretrained(folder)


def base_model(vlm: Vlm, trained: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """The model loaded anew, with parameters that were trained whole in the place of its own."""
    model = vlm.files.load(vlm.files.model_class, dtype)
    mine = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in trained.items():
            mine[name].copy_(tensor)
    return model


def _write_adapter(folder: Path, vlm: Vlm, weights: Weights) -> None:
    """Write an adapter as peft does. Modules that were trained whole go into it (`modules_to_save`)."""
    model, trained = vlm.model, weights.full.get(MODEL, {})
    # Of the whole model: without its stored tower all that is left of a module may have been trained.
    modules = whole_modules(vlm.files.meta(vlm.dtype), set(trained))
    inside = {name for name in trained if any(name.startswith(f"{path}.") for path in modules)}
    embeds = any(model.get_submodule(path) is model.get_input_embeddings() for path in modules)
    described = {
        **weights.settings[MODEL],
        "base_model_name_or_path": vlm.files.base,
        "modules_to_save": modules or None,
        # Else peft leaves the head with the embeddings as they were.
        "ensure_weight_tying": embeds and is_tied(model),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    tensors = {**weights.adapters[MODEL], **{name: trained[name] for name in inside}}
    # peft asks for a tied parameter under both of its names.
    tensors |= {alias: trained[name] for alias, name in tied_names(model).items() if name in inside}
    _save({PREFIX + name: tensor for name, tensor in tensors.items()}, folder / ADAPTER, weights.notes)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2, default=sorted) + "\n")
    if trained.keys() > inside:
        _save({n: tensor for n, tensor in trained.items() if n not in inside}, folder / BESIDE, {})


def _save(tensors: Mapping[str, Tensor], file: Path, notes: Mapping[str, str]) -> None:
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, file, {"format": "pt", **notes})


def whole_modules(model: nn.Module, names: set[str]) -> list[str]:
    """The outermost modules of which every parameter is in `names`, but lists, which peft refuses."""
    found: list[str] = []
    for path, module in model.named_modules():
        own = [f"{path}.{name}" for name, _ in module.named_parameters()]
        inside = any(path.startswith(f"{other}.") for other in found)
        if path and own and not inside and names.issuperset(own) and not isinstance(module, nn.ModuleList):
            found.append(path)
    return found


def _under_listed_names(
    file: Path, tensors: Mapping[str, Tensor], tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors by our names, tied ones under the one that is listed."""
    found = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    for alias, name in tied.items():
        if alias in found and not _equal(found.pop(alias), found.get(name)):
            raise UserError(
                f"init_from: {file} has {alias} apart from {name}, and in this model they are one; "
                "start from a run that left them tied"
            )
    return {f"{MODEL}.{name}": value for name, value in found.items()}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _check_tokens(folder: Path, vlm: Vlm, names: Collection[str]) -> None:
    """Refuse an adapter whose embeddings have no row for a token of this run, or rows for other tokens."""
    new = check_tokens(folder, vlm.files.processor.tokenizer, vlm.options.add_tokens)
    rows = {name for trained in vlm.always_trained.values() for name in trained}.intersection(names)
    if new and rows and added_tokens(folder) is not None:
        raise UserError(
            f"init_from: the tokenizer of {folder} lacks {new[0]!r} ({len(new)} such), so "
            f"{min(rows)} there has no row for it; state the tokens of that run in {OPTION}"
        )


def _settings(file: Path) -> dict[str, Any]:
    """What peft states of an adapter, but which parts were trained whole."""
    if not file.is_file():
        raise UserError(f"init_from: {file} is missing, which tells the alpha of the adapter; copy it there")
    stated = parse_settings(file.read_text(), file)
    if (kind := stated.get("peft_type")) != "LORA":
        raise UserError(f"init_from: {file} is of an adapter of type {kind}; give one of type LORA")
    return {name: value for name, value in stated.items() if name not in OF_WHOLE_PARTS}
