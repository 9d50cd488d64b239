"""What was trained: collected and exported, and put back from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MachineError, UserError
from ..families.base import Family
from ..files import atomic_folder
from ..parallel.mesh import Mesh
from ..trainable.parameters import base_name
from ..trainable.rules import Claims
from . import export_format
from .base import Format, Proof, Weights

CARRIED = "carried/"
"""Before the names, in a checkpoint, of what trained in an earlier phase."""


def export(
    family: Family,
    claims: Claims,
    mesh: Mesh,
    folder: Path,
    form: Format | None = None,
    notes: Mapping[str, str] | None = None,
) -> Proof:
    """Write what was trained in a format, the family's own by default, and prove it by reading it back.

    All ranks call it and have the proof; the main rank writes. `notes` go into the metadata, and those of
    conditions.
    """
    form = form or export_format(type(family), None)
    weights = collect(family, claims, mesh, form.whole, {**family.export_notes, **(notes or {})})

    def write() -> Proof:
        with atomic_folder(folder) as temporary:
            form.write(temporary, family, weights)
            if not any(temporary.iterdir()):
                raise MachineError(f"{folder}: write() of {form.name} wrote nothing")
            try:
                proof = form.prove(temporary, family, weights)
            except UserError as error:
                raise MachineError(
                    f"{folder}: what was written as {form.name} cannot be read: {error}"
                ) from error
            if proof.faults:
                raise MachineError(
                    f"{folder}: what was written as {form.name} is not what reads back: {proof}"
                )
        return proof

    return mesh.on_main(write)


def collect(family: Family, claims: Claims, mesh: Mesh, whole: bool, notes: Mapping[str, str]) -> Weights:
    """Gather what was trained on the main rank; with `whole`, all of a component that trains itself."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for component in [name for name in family.components if name in claims.components]:
        module: Any = family.components[component]
        state = module.state_dict()
        if any(m.startswith(f"{component}.") for m in claims.adapted):
            lora = mesh.full((n, t) for n, t in state.items() if ".lora_" in n)
            if mesh.main:
                settings[component] = module.peft_config["default"].to_dict()
                spelled = get_peft_model_state_dict(module, state_dict=lora)
                tensors |= {f"{component}.{n}": t for n, t in spelled.items()}
        if any(n.startswith(f"{component}.") for n in claims.direct):
            named = ((f"{component}.{base_name(n)}", t) for n, t in state.items() if ".lora_" not in n)
            tensors |= mesh.full((n, t) for n, t in named if whole or n in claims.direct)
    return Weights(tensors, settings, notes)


def load_trained(family: Family, tensors: dict[str, Tensor], average: bool) -> None:
    """Put a checkpoint's weights (the average where asked for and kept) into a family with its adapters."""
    prefix = "ema/" if average and any(name.startswith("ema/") for name in tensors) else "weights/"
    # A layer that an earlier phase trained may carry an adapter now.
    params = {base_name(name): param for name, param in family.components.named_parameters()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            for start in (prefix, CARRIED):
                if name.startswith(start):
                    params[base_name(name.removeprefix(start))].copy_(tensor)


def carried_names(family: Family, claims: Claims) -> list[str]:
    """Parameters that trained in an earlier phase and do not in this one, as they are called now."""
    return [
        name
        for name, _ in family.components.named_parameters()
        if base_name(name) in claims.previously_trained or name.split(".lora_")[0] in claims.frozen_adapters
    ]
