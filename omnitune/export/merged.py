"""Whole models with the adapters added to their weights."""

from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..families.base import Family
from ..families.vlm.family import MODEL, Vlm
from .base import Proof, Weights
from .peft import Peft, base_model


class Merged(Peft):
    """As transformers reads it; a run starts from it as from any whole model."""

    name = "merged"

    def write(self, folder: Path, family: Family, weights: Weights) -> None:
        assert isinstance(family, Vlm), family.name
        if getattr(family.files.config, "quantization_config", None) is not None:
            raise UserError(
                f"--format merged: {family.files.base} is quantised, and an adapter cannot be added to its "
                "weights without loss; give the model it was made of as model.path, or use the adapter as it "
                "is"
            )
        if not weights.adapters:
            raise UserError(
                "--format merged: nothing was trained by LoRA, weights/ is whole already; leave it out"
            )
        merge(family, weights).save_pretrained(folder)
        family.files.processor.save_pretrained(folder)

    def prove(self, folder: Path, family: Family, weights: Weights) -> Proof:
        assert isinstance(family, Vlm), family.name
        merged = merge(family, weights).state_dict()
        return super().prove(folder, family, Weights({f"{MODEL}.{n}": t for n, t in merged.items()}))


def merge(vlm: Vlm, weights: Weights) -> Any:
    """The model with the adapter in its weights, added in fp32."""
    from peft import PeftModel

    model = base_model(vlm, weights.full.get(MODEL, {}), torch.float32)
    wrapped = PeftModel(model, vlm.model.peft_config["default"])
    mine = dict(wrapped.base_model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.adapters[MODEL].items():
            mine[name.replace(".weight", ".default.weight")].copy_(tensor)
    return wrapped.merge_and_unload().to(vlm.dtype)
