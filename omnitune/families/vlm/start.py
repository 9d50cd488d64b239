"""What a run of a vision-language model may start from: an adapter as peft writes it, or a whole model."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UserError
from .export import ADAPTER, PEFT_PREFIX, TRAINED
from .tokens import OPTION, added_tokens, check_tokens, tied_names

if TYPE_CHECKING:
    from .family import Vlm

MODEL = "model"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
OF_WHOLE_PARTS = ("modules_to_save", "ensure_weight_tying")
"""Settings of peft that say which parts were trained whole; the tensors say it too."""


class PeftFolders:
    """A folder with an adapter, or with a whole model, as `export` or peft or transformers wrote it."""

    forms = f"{ADAPTER} nor {CONFIG}"

    def folders(self, path: Path) -> dict[str, Path]:
        # Some tools leave the config of the base beside an adapter.
        has_weights = any((path / name).is_file() for name in WEIGHTS)
        if has_weights and (path / CONFIG).is_file() and (path / ADAPTER).is_file():
            raise UserError(
                f"init_from: {path} holds a whole model and an adapter; give a folder with one of them"
            )
        return {MODEL: path} if (path / CONFIG).is_file() and not (path / ADAPTER).is_file() else {}

    def files(self, path: Path) -> list[Path]:
        folder = path.parent if path.name == ADAPTER else path
        return [file for name in (ADAPTER, TRAINED) if (file := folder / name).is_file()]

    def read(
        self, file: Path, family: "Vlm", adapted: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by our names, and the settings that the adapter was trained with."""
        tensors = _once(file, _read(file), tied_names(family.model))
        if file.name == TRAINED:
            return tensors, {}
        settings = _settings(file.with_name(ADAPTER_CONFIG))
        new = check_tokens(file.parent, family.files.processor.tokenizer, family.options.add_tokens)
        rows = {name for names in family.always_trained.values() for name in names} & tensors.keys()
        if new and rows and added_tokens(file.parent) is not None:
            raise UserError(
                f"init_from: the tokenizer of {file.parent} lacks {new[0]!r} ({len(new)} such), so "
                f"{min(rows)} there has no row for it; state the tokens of that run in {OPTION}"
            )
        return tensors, settings


def _once(file: Path, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by our names, tied ones under the one that is listed."""
    found = {name.removeprefix(PEFT_PREFIX): value for name, value in tensors.items()}
    for alias, name in tied.items():
        if alias in found and not _equal(found.pop(alias), found.get(name)):
            raise UserError(
                f"init_from: {file} has {alias} apart from {name}, and in this model they are one; "
                "start from a run that left them tied"
            )
    return {f"{MODEL}.{name}": value for name, value in found.items()}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"init_from: {file} cannot be read: {error}") from error


def _settings(file: Path) -> dict[str, Any]:
    """What peft states of an adapter, but which parts were trained whole."""
    if not file.is_file():
        raise UserError(f"init_from: {file} is missing, which tells the alpha of the adapter; copy it there")
    try:
        stated: Mapping[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"init_from: {file} cannot be read: {error}") from error
    if (kind := stated.get("peft_type")) != "LORA":
        raise UserError(f"init_from: {file} is of an adapter of type {kind}; give one of type LORA")
    return {f"{MODEL}.{name}": value for name, value in stated.items() if name not in OF_WHOLE_PARTS}
