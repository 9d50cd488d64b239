"""Where a vision-language model lies, and its parts as transformers loads them."""

import json
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..types import UserError

SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS = "model.safetensors"


def quiet() -> None:
    """Keep the library's progress bars and hints off the terminal: our own lines say what matters."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft asks for it, under the name that it had before.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


class VlmFiles:
    """A folder as `save_pretrained` writes it, or a hub id."""

    def __init__(self, path: str, revision: str | None = None):
        self.path, self.revision = path, revision

    @cached_property
    def folder(self) -> Path:
        """With everything but weights, fetched from the hub where it is not here."""
        here = Path(self.path)
        if here.is_dir():
            if not (here / "config.json").is_file():
                raise UserError(
                    f"model.path: {here} has no config.json; give a folder as `save_pretrained` writes it"
                )
            return here
        if here.is_absolute() or self.path.count("/") != 1:
            raise UserError(f"model.path: {self.path} is neither a folder nor a hub id (OWNER/NAME)")
        return self._snapshot(SETTINGS)

    def _snapshot(self, patterns: Sequence[str], local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            found = snapshot_download(
                self.path,
                revision=self.revision,
                allow_patterns=list(patterns),
                local_files_only=local_files_only,
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"model.path: {self.path} is not on this machine and cannot be fetched from the hub "
                f"({str(error).splitlines()[0]}); correct it, or give a folder"
            ) from error
        return Path(found)

    def download(self) -> Path:
        """The folder with its weights."""
        return self.folder if Path(self.path).is_dir() else self._snapshot([*SETTINGS, "*.safetensors"])

    @property
    def here(self) -> bool:
        """Whether all weights are on this machine."""
        return bool(self.weight_paths) and all(path.is_file() for path in self.weight_paths)

    @cached_property
    def weight_paths(self) -> list[Path]:
        """Files of weights, there or not."""
        index = self.folder / f"{WEIGHTS}.index.json"
        if not index.is_file():
            return [self.folder / WEIGHTS]
        names = json.loads(index.read_text())["weight_map"].values()
        return [self.folder / name for name in sorted(set(names))]

    def check_weights(self) -> bool:
        """Raise UserError for files that a folder lacks or that are damaged; False where the hub has them."""
        if self.shipped is not None:
            return False
        if not self.here and not Path(self.path).is_dir():
            return False
        for path in self.weight_paths:
            if not path.is_file():
                raise UserError(f"model.path: {path} is missing; copy the weights there or fetch them again")
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise UserError(f"model.path: {path} cannot be loaded: {error}; fetch it again") from error
        return True

    @cached_property
    def shipped(self) -> dict[str, Any] | None:
        """Our own copy of a published configuration, where nothing of the model is on this machine."""
        from importlib.resources import files

        if Path(self.path).is_dir() or self._kept:
            return None
        known = [
            json.loads(file.read_text()) for file in files(__package__).joinpath("vlm_configs").iterdir()
        ]
        return next((one for one in known if one["path"] == self.path), None)

    @property
    def _kept(self) -> bool:
        """Whether the hub's cache has the configuration."""
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.path, "config.json", revision=self.revision), str)

    @property
    def source(self) -> str:
        """Where the configuration was read."""
        if self.shipped is not None:
            return f"a shipped configuration, {self.shipped['source']}"
        return f"{self.folder / 'config.json'} ({self.config.model_type})"

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        if self.shipped is not None:
            return AutoConfig.for_model(**self.shipped["config"])
        try:
            return AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"model.path: {self.folder / 'config.json'} is of no model that transformers knows: {error}"
            ) from error

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        try:
            return AutoProcessor.from_pretrained(self.folder)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"model.path: the processor in {self.folder} cannot be loaded: {error}; fetch the model again"
            ) from error

    @cached_property
    def model_class(self) -> Any:
        from transformers import AutoModelForImageTextToText

        mapping = AutoModelForImageTextToText._model_mapping
        if type(self.config) not in mapping:
            raise UserError(
                f"model.path: {self.path} is of type {self.config.model_type}, which answers no questions "
                "about pictures (AutoModelForImageTextToText does not know it); give a vision-language model"
            )
        found = mapping[type(self.config)]
        return found[0] if isinstance(found, tuple) else found

    def meta(self, dtype: torch.dtype) -> nn.Module:
        """The network without weights."""
        with torch.device("meta"):
            model: nn.Module = self.model_class(self.config)
        return model.to(dtype)

    def load(self, cls: Any, dtype: torch.dtype) -> nn.Module:
        """The network as a class builds it; tensors of modules that the class left out are not read."""
        folder = self.download()
        try:
            model, told = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        except (OSError, SafetensorError) as error:
            raise UserError(f"model.path: {folder} cannot be loaded: {error}; fetch it again") from error
        if told["missing_keys"]:
            raise UserError(
                f"model.path: {folder} lacks {min(told['missing_keys'])} ({len(told['missing_keys'])} such), "
                "which its configuration asks for; fetch the model again, with its own config.json"
            )
        loaded: nn.Module = model
        return loaded
