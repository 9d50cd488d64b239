"""Where a vision-language model lies, and its parts as transformers loads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ...errors import UserError
from ..files import (
    DAMAGE,
    ModelFolder,
    blamed,
    check_layers,
    load_pretrained,
    missing_weights,
    opened,
    read_json,
    weight_paths,
)
from .tokens import add_tokens, added_tokens, check_tokens, make_room
from .tower_cache import tower_class

CUTS = ("truncation", "max_length", "truncation_strategy", "stride")
"""What `tokenizer.json` may say of texts that are cut off: `max_length` of the run decides."""
WEIGHTS, PIPELINE = "model.safetensors", "model_index.json"


@dataclass(frozen=True)
class VlmFiles(ModelFolder):
    """A folder as `save_pretrained` writes it, or a hub id."""

    start: Path | None = None
    """A folder whose configuration and weights take the place of its own; the processor stays."""
    tokens: Sequence[str] = ()
    """Tokens that are added to the processor's; the network has room for them."""

    marker: ClassVar[str] = "config.json"
    settings: ClassVar[Sequence[str]] = ("*.json", "*.jinja", "*.txt", "*.model")

    @property
    def home(self) -> Path:
        """The folder of its configuration and weights, those perhaps not fetched."""
        return self.start or self.folder or self.fetch()

    @property
    def base(self) -> str:
        """What adapters are trained on, as a user names it."""
        return self.path if self.start is None else str(self.start)

    @property
    def where(self) -> str:
        """The key of a run that names that folder."""
        return self.key if self.start is None else "init_from"

    @property
    def weight_paths(self) -> list[Path]:
        """Files of weights, there or not."""
        return weight_paths(self.home / WEIGHTS, self.where)[1]

    @property
    def deciding(self) -> list[Path]:
        """The files that decide what it computes."""
        kinds = (".json", ".safetensors", ".jinja", ".txt", ".model")
        own = sorted(p for p in (self.folder or self.fetch()).iterdir() if p.is_file() and p.suffix in kinds)
        if self.start is None:
            return own
        beside = [p for p in own if p.suffix != ".safetensors"]
        return [self.start / "config.json", *self.weight_paths, *beside]

    def check_weights(self) -> bool:
        """Raise UserError for files that a folder lacks or that are damaged; False where the hub has them."""
        if self.start is None and self.folder is None:
            return False
        missing = missing_weights(self.home / WEIGHTS, self.where)
        if missing and self.start is None and self.local is None:
            return False
        if missing:
            raise UserError(f"{self.where}: {missing}")
        for path in self.weight_paths:
            with opened(path, self.where):
                pass
        return self.folder is not None

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        if self.folder is None:
            assert self.shipped is not None
            own = AutoConfig.for_model(**self.shipped["config"])
        else:
            own = self._config_in(self.folder)
        if self.start is None:
            return own
        theirs = self._config_in(self.start)
        if theirs.model_type != own.model_type:
            raise UserError(
                f"init_from: {self.start} holds a model of type {theirs.model_type}, and {self.path} is of "
                f"type {own.model_type}; give a folder of that type, or give this one as model.path"
            )
        return theirs

    def _config_in(self, folder: Path) -> Any:
        from transformers import AutoConfig

        if (folder / PIPELINE).is_file() and not (folder / self.marker).is_file():
            raise UserError(
                f"{self.where}: {folder} is a pipeline of diffusers ({PIPELINE}), no vision-language model; "
                "give the folder of one, or set another family"
            )
        file = folder / self.marker
        check_layers(read_json(file, self.where) if file.is_file() else {}, self.where, file)
        try:
            return AutoConfig.from_pretrained(folder)
        except DAMAGE as error:
            raise UserError(
                f"{self.where}: {file} is of no model that transformers knows: {error}"
            ) from error

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        folder = self.folder or self.fetch()
        with blamed(self.key, f"the processor in {folder}"):
            processor = AutoProcessor.from_pretrained(folder)
        for tokenizer in (processor.tokenizer, getattr(processor, "qformer_tokenizer", None)):
            for name in CUTS:  # else processors cut every text to what was saved with a tokenizer
                getattr(tokenizer, "init_kwargs", {}).pop(name, None)
        add_tokens(processor.tokenizer, self.tokens)
        return processor

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
        classes = mapping[type(self.config)]
        return classes[0] if isinstance(classes, tuple) else classes

    def meta(self, dtype: torch.dtype) -> nn.Module:
        """The network without weights.

        Of a shipped configuration, whose tokenizer is not here, without rows for tokens that are added.
        """
        with torch.device("meta"), blamed(self.where, f"{self.marker} of {self.path}"):
            model: nn.Module = self.model_class(self.config)
        if self.folder is not None:
            self._make_room(model)
        return model.to(dtype)

    def load(self, cls: Any, dtype: torch.dtype) -> nn.Module:
        """The network as a class builds it; tensors of modules that the class left out are not read."""
        folder = self.start or self.fetch("*.safetensors")
        # Published folders may hold more than this class reads; what a run exported may not.
        strict = self.start is not None
        model = load_pretrained(cls, folder, self.where, settings={"dtype": dtype}, strict=strict)
        self._make_room(model)
        return model

    def load_tower(self, prefixes: Sequence[str], dtype: torch.dtype) -> nn.Module:
        """The network with its tower alone, for where the rest is there already; nothing else is read."""
        folder = self.start or self.fetch("*.safetensors")
        cls = tower_class(self.model_class, prefixes)
        return load_pretrained(cls, folder, self.where, settings={"dtype": dtype}).eval()

    def _make_room(self, model: nn.Module) -> None:
        """Give added tokens their rows, and hold them against those that `init_from` was trained with."""
        new = self.new_tokens
        if self.tokens:
            make_room(model, self.processor.tokenizer, new)
