"""Trained weights of a vision-language model, as peft and transformers read them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .tokens import is_tied, tied_names

if TYPE_CHECKING:
    from .family import Vlm

ADAPTER = "adapter_model.safetensors"
TRAINED = "trained.safetensors"
"""Parts that were trained whole beside an adapter and that peft has no place for, by the model's names."""
PEFT_PREFIX = "base_model.model."


def write_adapter(
    folder: Path, family: "Vlm", adapter: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> None:
    """Write an adapter as peft does. Modules that were trained whole go into it (`modules_to_save`)."""
    whole = whole_modules(family.model, set(trained))
    inside = {name for name in trained if any(name.startswith(f"{path}.") for path in whole)}
    config: Any = family.model.peft_config["default"]
    described = {
        **config.to_dict(),
        "base_model_name_or_path": family.files.base,
        "modules_to_save": whole or None,
        # Else peft leaves the head with the embeddings as they were.
        "ensure_weight_tying": is_tied(family.model) and _embeddings(family.model) in whole,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    tensors = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in adapter.items()}
    tensors.update({f"{PEFT_PREFIX}{name}": trained[name] for name in inside})
    for alias, name in tied_names(family.model).items():
        if name in inside:  # peft asks for it under both
            tensors[f"{PEFT_PREFIX}{alias}"] = trained[name]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_contiguous(tensors), folder / ADAPTER, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(_plain(described), indent=2) + "\n")
    if beside := {name: tensor for name, tensor in trained.items() if name not in inside}:
        save_file(_contiguous(beside), folder / TRAINED, {"format": "pt"})
    save_processor(folder, family)


def whole_modules(model: nn.Module, names: set[str]) -> list[str]:
    """The outermost modules of which every parameter is in `names`, but lists, which peft refuses."""
    found: list[str] = []
    for path, module in model.named_modules():
        own = [f"{path}.{name}" for name, _ in module.named_parameters()]
        inside = any(path.startswith(f"{other}.") for other in found)
        if path and own and not inside and names.issuperset(own) and not isinstance(module, nn.ModuleList):
            found.append(path)
    return found


def _embeddings(model: Any) -> str:
    """The name of the module that holds the embeddings of tokens."""
    held = model.get_input_embeddings()
    found: str = next(name for name, module in model.named_modules() if module is held)
    return found


def write_full(folder: Path, family: "Vlm", trained: Mapping[str, Tensor]) -> None:
    """Write the whole model, trained weights in the place of its own, in the published layout."""
    model: Any = family.files.load(family.files.model_class, family.dtype)
    load_into(model, trained)
    model.save_pretrained(folder)
    save_processor(folder, family)


def write_merged(
    folder: Path, family: "Vlm", adapter: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> None:
    """Write the whole model with the adapter added to its weights."""
    from peft import PeftModel

    model: Any = family.files.load(family.files.model_class, torch.float32)
    load_into(model, trained)
    wrapped = PeftModel(model, family.model.peft_config["default"])
    mine = dict(wrapped.base_model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in adapter.items():
            mine[name.replace(".weight", ".default.weight")].copy_(tensor)
    merged = wrapped.merge_and_unload().to(family.dtype)
    merged.save_pretrained(folder)
    save_processor(folder, family)


def load_into(model: nn.Module, trained: Mapping[str, Tensor]) -> None:
    mine = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in trained.items():
            mine[name].copy_(tensor)


def save_processor(folder: Path, family: "Vlm") -> None:
    """Processor, tokenizer and chat template, so that the folder answers as it was trained."""
    family.files.processor.save_pretrained(folder)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _plain(value: Any) -> Any:
    """As JSON can hold it: sets as sorted lists, enumerations as their values."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)
