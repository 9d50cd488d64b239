"""Where a vision-language model lies, and its parts as transformers loads them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ...errors import UserError
from .tokens import add_tokens, added_tokens, check_tokens, make_room

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
    """A folder as `save_pretrained` writes it, or a hub id.

    `start` is a folder whose configuration and weights take the place of its own; the processor stays.
    `tokens` are added to the processor's, and the network has room for them.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        start: Path | None = None,
        tokens: Sequence[str] = (),
    ):
        self.path, self.revision, self.start, self.tokens = path, revision, start, tokens

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

    @property
    def home(self) -> Path:
        """The folder of its configuration and weights, those perhaps not fetched."""
        return self.start or self.folder

    @property
    def base(self) -> str:
        """What adapters are trained on, as a user names it."""
        return self.path if self.start is None else str(self.start)

    @property
    def where(self) -> str:
        """The key of a run that names that folder."""
        return "model.path" if self.start is None else "init_from"

    def download(self) -> Path:
        """The folder with its weights."""
        if self.start is not None:
            return self.start
        return self.folder if Path(self.path).is_dir() else self._snapshot([*SETTINGS, "*.safetensors"])

    @property
    def here(self) -> bool:
        """Whether all weights are on this machine."""
        return bool(self.weight_paths) and all(path.is_file() for path in self.weight_paths)

    @cached_property
    def weight_paths(self) -> list[Path]:
        """Files of weights, there or not."""
        index = self.home / f"{WEIGHTS}.index.json"
        if not index.is_file():
            return [self.home / WEIGHTS]
        names = json.loads(index.read_text())["weight_map"].values()
        return [self.home / name for name in sorted(set(names))]

    @property
    def deciding(self) -> list[Path]:
        """The files that decide what it computes."""
        kinds = (".json", ".safetensors", ".jinja", ".txt", ".model")
        own = sorted(p for p in self.folder.iterdir() if p.is_file() and p.suffix in kinds)
        if self.start is None:
            return own
        beside = [p for p in own if p.suffix != ".safetensors"]
        return [self.start / "config.json", *self.weight_paths, *beside]

    def check_weights(self) -> bool:
        """Raise UserError for files that a folder lacks or that are damaged; False where the hub has them."""
        if self.start is None:
            if self.shipped is not None:
                return False
            if not self.here and not Path(self.path).is_dir():
                return False
        for path in self.weight_paths:
            if not path.is_file():
                raise UserError(
                    f"{self.where}: {path} is missing; copy the weights there or fetch them again"
                )
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.where}: {path} cannot be loaded: {error}; fetch it again") from error
        return self.shipped is None

    @cached_property
    def shipped(self) -> dict[str, Any] | None:
        """Our own copy of a published configuration, where nothing of the model is on this machine."""
        from importlib.resources import files

        if Path(self.path).is_dir() or self._kept:
            return None
        known = [json.loads(file.read_text()) for file in files(__package__).joinpath("configs").iterdir()]
        return next((one for one in known if one["path"] == self.path), None)

    @property
    def _kept(self) -> bool:
        """Whether the hub's cache has the configuration."""
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.path, "config.json", revision=self.revision), str)

    @property
    def source(self) -> str:
        """Where the configuration was read."""
        if self.shipped is not None and self.start is None:
            return f"a shipped configuration, {self.shipped['source']}"
        return f"{self.home / 'config.json'} ({self.config.model_type})"

    @cached_property
    def config(self) -> Any:
        own = self._own_config()
        if self.start is None:
            return own
        found = self._config_in(self.start)
        if found.model_type != own.model_type:
            raise UserError(
                f"init_from: {self.start} holds a model of type {found.model_type}, and {self.path} is of "
                f"type {own.model_type}; give a folder of that type, or give this one as model.path"
            )
        return found

    def _own_config(self) -> Any:
        from transformers import AutoConfig

        if self.shipped is not None:
            return AutoConfig.for_model(**self.shipped["config"])
        return self._config_in(self.folder)

    def _config_in(self, folder: Path) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.where}: {folder / 'config.json'} is of no model that transformers knows: {error}"
            ) from error

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        try:
            found = AutoProcessor.from_pretrained(self.folder)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"model.path: the processor in {self.folder} cannot be loaded: {error}; fetch the model again"
            ) from error
        add_tokens(found.tokenizer, self.tokens)
        return found

    @cached_property
    def new_tokens(self) -> list[str]:
        """Those added that the weights know nothing of."""
        if self.start is None:
            return [*self.tokens]
        if self.tokens and added_tokens(self.start) is None:
            raise UserError(
                f"init_from: {self.start} has no tokenizer.json, so whether its rows know {self.tokens[0]!r} "
                "cannot be told; copy it there"
            )
        return check_tokens(self.start, self.processor.tokenizer, self.tokens)

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
        """The network without weights.

        Of a shipped configuration, whose tokenizer is not here, without rows for tokens that are added.
        """
        with torch.device("meta"):
            model: nn.Module = self.model_class(self.config)
        if self.shipped is None:
            self._make_room(model)
        return model.to(dtype)

    def load(self, cls: Any, dtype: torch.dtype) -> nn.Module:
        """The network as a class builds it; tensors of modules that the class left out are not read."""
        folder = self.download()
        try:
            model, told = cls.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.where}: {folder} cannot be loaded: {error}; fetch it again") from error
        self._check_told(folder, told)
        loaded: nn.Module = model
        self._make_room(loaded)
        return loaded

    def _check_told(self, folder: Path, told: Mapping[str, Any]) -> None:
        """Refuse weights that do not fill the network; of `init_from` also those that it has no place for."""
        others = [f"{name} of {tuple(asked)}" for name, _, asked in told["mismatched_keys"]]
        if lacking := sorted([*told["missing_keys"], *others]):
            raise UserError(
                f"{self.where}: {folder} lacks {lacking[0]} ({len(lacking)} such), "
                "which its configuration asks for; fetch the model again, with its own config.json"
            )
        if self.start is not None and (strangers := sorted(told["unexpected_keys"])):
            raise UserError(
                f"init_from: {folder} has {strangers[0]} ({len(strangers)} such), for which a model of type "
                f"{self.config.model_type} has no place; give the folder as it was exported"
            )

    def _make_room(self, model: nn.Module) -> None:
        """Give added tokens their rows, and hold them against those that `init_from` was trained with."""
        new = self.new_tokens
        if self.tokens:
            make_room(model, self.processor.tokenizer, new)
