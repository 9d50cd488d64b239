"""The layout of diffusers: LoRA files as pipelines load them, and whole components as folders."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..families.base import Family
from ..families.diffusion.pipeline import LORA_FILE, DiffusersFamily
from .base import Format, Weights, parse_settings, read_files

SETTINGS = "lora_adapter_metadata"
"""Key of the metadata under which diffusers keeps alpha and the other settings of peft."""
MODULE_FILE = "model.safetensors"
"""In a folder without config.json: a module that no published pipeline has."""


class Diffusers(Format):
    name = "diffusers"
    holds = f"{LORA_FILE} nor a component folder with config.json"

    def folders(self, path: Path) -> dict[str, Path]:
        return {p.parent.name: p.parent for p in path.glob("*/*config.json")} if path.is_dir() else {}

    def files(self, path: Path) -> list[Path]:
        if path.is_file():
            return [path]
        stem, suffix = LORA_FILE.rsplit(".", 1)
        modules = [p for p in path.glob(f"*/{MODULE_FILE}") if p.parent.name not in self.folders(path)]
        return sorted(path.glob(f"{stem}*.{suffix}")) + sorted(modules)

    def read(self, path: Path, family: Family, components: Collection[str]) -> Weights:
        tensors: dict[str, Tensor] = {}
        settings: dict[str, dict[str, Any]] = {}
        notes: dict[str, str] = {}
        for file, found, metadata in read_files(self.files(path)):
            if file != path and file.name == MODULE_FILE:
                tensors |= {f"{file.parent.name}.{name}": tensor for name, tensor in found.items()}
                continue
            parts = _parts(file, family, components)
            for name, tensor in found.items():
                part, dot, rest = name.partition(".")
                tensors[f"{parts.get(part, part)}{dot}{rest}"] = tensor
            for name, value in parse_settings(metadata.get(SETTINGS, "{}"), file).items():
                part, _, rest = name.partition(".")
                settings.setdefault(parts.get(part, part), {})[rest] = value
            notes |= {key: text for key, text in metadata.items() if key not in ("format", SETTINGS)}
        return Weights(tensors, settings, notes)

    def read_folder(self, component: str, folder: Path, family: Family) -> Mapping[str, Tensor]:
        assert isinstance(family, DiffusersFamily), family.name
        if family.files.classes[component][0] == "diffusers":
            # Its loader would hold a second model, in fp32; these tensors stay in the file until compared.
            return super().read_folder(component, folder, family)
        state: dict[str, Tensor] = family.files.find_class(component).from_pretrained(folder).state_dict()
        return state

    def write(self, folder: Path, family: Family, weights: Weights) -> None:
        assert isinstance(family, DiffusersFamily), family.name
        adapters = weights.adapters
        for file, parts in family.adapter_files(list(adapters)).items():
            states = {f"{part}_lora_layers": adapters[name] for part, name in parts.items()}
            settings = {f"{p}_lora_adapter_metadata": dict(weights.settings[n]) for p, n in parts.items()}
            family.pipeline_type.save_lora_weights(folder, weight_name=file, **states, **settings)
            if weights.notes:
                ((_, tensors, metadata),) = read_files([folder / file])
                save_file(tensors, folder / file, {**metadata, **weights.notes})
        for name, state in weights.full.items():
            if name in family.files.classes:
                module: Any = family.on_meta(name)
                module.load_state_dict(state, assign=True)
                module.save_pretrained(folder / name)
            else:
                (folder / name).mkdir()
                save_file(state, folder / name / MODULE_FILE, {"format": "pt"})


def _parts(file: Path, family: Family, components: Collection[str]) -> Mapping[str, str]:
    """What a file calls components -> what they are called here."""
    known = family.adapter_files(family.adapter_components)
    expected = family.adapter_files(sorted(components)) or known
    if file.name in expected:
        return expected[file.name]
    if file.name in known or len(expected) > 1:
        raise UserError(
            f"init_from: {file} is not of what the rules adapt, {', '.join(sorted(components))}; give "
            f"{' and '.join(expected)}, or rules for what it is of"
        )
    return next(iter(expected.values()))  # a name of the user's own
