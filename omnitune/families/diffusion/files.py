"""A pipeline in the diffusers layout: in a folder, on the hub, or known by its configuration only."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...options import conforms
from ..files import (
    ModelFolder,
    blamed,
    check_layers,
    load_pretrained,
    missing_weights,
    opened,
    read_json,
    refuse_tensors,
    shapes_in,
    weight_paths,
)

VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
WEIGHT_NAMES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
Shapes = dict[str, list[int]]
"""Of tensors by name."""
IN_FILES = {"vae": ("first_stage_model.", "vae.")}
"""Component beside the core -> what its names begin with in a single file that has it."""


@dataclass(frozen=True)
class ModelFiles(ModelFolder):
    """A pipeline in the diffusers layout: a folder, or a published model known by its configuration only."""

    replaced: Mapping[str, Path] = field(default_factory=dict)
    """Component -> folder that takes the place of the model's own."""
    file: Path | None = None
    """A single file whose weights, of the core and perhaps of others, take the place of the folder's."""
    core: str = ""
    """The component that the single file is of."""

    marker: ClassVar[str] = "model_index.json"
    settings: ClassVar[Sequence[str]] = ("model_index.json", "*/*.json")

    def is_complete(self, folder: Path) -> bool:
        index = folder / self.marker
        if not index.is_file():
            return False
        return all(any((folder / name).glob("*.json")) for name in _classes(read_json(index)))

    @cached_property
    def index(self) -> dict[str, Any]:
        """What model_index.json says."""
        if self.folder is None:
            assert self.shipped is not None
            classes = {name: part["class"] for name, part in self.shipped["components"].items()}
            return {**classes, **self.shipped.get("pipeline", {})}
        index = self.folder / self.marker
        if not index.is_file():
            raise UserError(f"{self.key}: {index} is missing; give a folder in the diffusers layout")
        return read_json(index, self.key)

    @cached_property
    def classes(self) -> dict[str, tuple[str, str]]:
        """Component -> (library, class)."""
        return _classes(self.index)

    @property
    def pipeline_config(self) -> dict[str, Any]:
        """Settings of the pipeline itself (`boundary_ratio`, ...)."""
        return {k: v for k, v in self.index.items() if not k.startswith("_") and not isinstance(v, list)}

    def component(self, name: str) -> Path:
        """The folder of a component, fetched from the hub where it is missing."""
        return self.replaced[name] if name in self.replaced else self.fetch(f"{name}/*") / name

    def config(self, name: str) -> dict[str, Any]:
        folder = self.replaced.get(name) or (self.folder / name if self.folder else None)
        if folder is None:
            assert self.shipped is not None
            return dict(self.shipped["components"][name]["config"])
        file = folder / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if not file.is_file():
            raise UserError(f"{self.key}: {file} is missing; the model is incomplete")
        config = read_json(file, self.key)
        check_layers(config, self.option(name), file)
        if self.classes[name][0] != "diffusers":
            return config
        return {**self._defaults(name, config, file), **config}

    def _defaults(self, name: str, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
        """What a class of diffusers takes for what its configuration leaves out.

        Raises UserError for a value that is not of the type that the class states.
        """
        init = self.find_class(name).__init__
        taken = signature(init).parameters.values()
        usual = {one.name: one.default for one in taken if one.default is not one.empty}
        with blamed(self.option(name), file):
            hints = get_type_hints(init)
        for key in config.keys() & hints.keys():
            # Annotations are at times wider than what they leave out: `float = True`, `float = None`.
            plain = not isinstance(config[key], list | dict)
            as_usual = plain and key in usual and type(config[key]) is type(usual[key])
            if not as_usual and not conforms(config[key], _any_length(hints[key])):
                raise UserError(
                    f"{self.option(name)}: {file} states {key} of {config[key]!r:.80}, which is no "
                    f"{getattr(hints[key], '__name__', hints[key])}; fetch it again"
                )
        return usual

    def find_class(self, name: str) -> Any:
        """The class of a component. Raises UserError for one that is in neither library."""
        library, cls = self.classes[name]
        found = None
        if library in WEIGHT_NAMES:
            with suppress(ImportError, RuntimeError):  # of what is imported when it is asked for
                found = getattr(import_module(library), cls, None)
        if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
            raise UserError(
                f"{self.key}: {self.marker} of {self.path} says that {name} is {cls!r:.60} of "
                f"{library!r:.60}, which is no part of a model in the installed diffusers or transformers; "
                "fetch it again, or upgrade them"
            )
        return found

    def find(self, name: str) -> Path | None:
        """Where a component is that is whole on this machine, or None where it would be fetched.

        Raises UserError where a folder lacks a file.
        """
        if self.in_file(name):
            return self.file
        if self.local is not None or name in self.replaced:
            return self.weights(name)
        if self.folder is None or self._missing(name, self.folder / name):
            return None
        return self.folder / name

    def weights(self, name: str) -> Path:
        """The folder of a component with its weights or vocabulary, fetched from the hub if missing."""
        folder = self.component(name)
        if missing := self._missing(name, folder):
            raise UserError(f"{self.option(name)}: {missing}")
        return folder

    def option(self, name: str) -> str:
        """The option that says where a component lies."""
        if self.in_file(name):
            return "model.path"
        return "init_from" if name in self.replaced else self.key

    def deciding(self, name: str) -> list[Path]:
        """The files that decide what a component computes."""
        if self.in_file(name):
            assert self.file is not None
            return [self.file, *self.fetch().glob(f"{name}/config.json")]
        return sorted(path for path in self.component(name).rglob("*") if path.is_file())

    def _missing(self, name: str, folder: Path) -> str | None:
        """Which file a folder lacks, and what to do."""
        if name.endswith(("processor", "extractor")):
            lacking = folder / "preprocessor_config.json"
            return None if lacking.is_file() else f"{lacking} is missing; fetch the model again"
        if name.startswith("tokenizer"):
            if any((folder / vocabulary).is_file() for vocabulary in VOCABULARIES):
                return None
            return (
                f"{folder / VOCABULARIES[0]} is missing; copy the vocabulary there or fetch the model again"
            )
        return missing_weights(folder / WEIGHT_NAMES[self.classes[name][0]], self.option(name))

    def _weight_paths(self, name: str, folder: Path) -> list[Path]:
        return weight_paths(folder / WEIGHT_NAMES[self.classes[name][0]], self.option(name))[1]

    def check_tensors(self, name: str, path: Path, module: nn.Module) -> None:
        """Hold the headers of a component's files against the network that its configuration describes.

        Reads no tensor; files that are not safetensors have no header and are met when they are loaded.
        """
        key = self.option(name)
        paths = [path] if path == self.file else self._weight_paths(name, path)
        if any(one.suffix != ".safetensors" for one in paths):
            return
        shapes = {tensor: shape for one in paths for tensor, shape in shapes_in(one, key).items()}
        if path == self.file:
            shapes = self._converted(name, shapes, module)
        else:
            loaded = _names_when_loaded(module, list(shapes))
            shapes = {loaded[tensor]: shape for tensor, shape in shapes.items()}
        refuse_tensors(path, key, *_differences(module, shapes))

    def load(self, name: str, dtype: torch.dtype) -> nn.Module:
        """A network with its weights, from its folder."""
        # diffusers and transformers do not agree on the name.
        setting = "dtype" if self.classes[name][0] == "transformers" else "torch_dtype"
        folder, key = self.weights(name), self.option(name)
        return load_pretrained(self.find_class(name), folder, key, settings={setting: dtype})

    def tensors(self, name: str, keys: Sequence[str]) -> list[Tensor]:
        """A few tensors of a component's safetensors files; nothing else of it is read."""
        if self.in_file(name):
            state = self.load_from_file(name).state_dict()
            return [state[key] for key in keys]
        folder, key = self.weights(name), self.option(name)
        tensors: dict[str, Tensor] = {}
        for path in self._weight_paths(name, folder):
            with opened(path, key) as file:
                tensors.update({one: file.get_tensor(one) for one in set(keys).intersection(file.keys())})
        refuse_tensors(folder, key, sorted(set(keys) - set(tensors)), [])
        return [tensors[one] for one in keys]

    # Single files

    def in_file(self, name: str) -> bool:
        """Whether the weights of a component are in the single file."""
        return self.file is not None and name not in self.replaced and name in self._in_file

    @cached_property
    def _in_file(self) -> Sequence[str]:
        assert self.file is not None
        keys = shapes_in(self.file, "model.path")
        beside = [name for name, starts in IN_FILES.items() if any(key.startswith(starts) for key in keys)]
        return [self.core, *(name for name in beside if name in self.classes)]

    def load_from_file(self, name: str) -> nn.Module:
        """A component of the single file, in the file's dtype, through the conversion that diffusers has."""
        with blamed("model.path", str(self.file)):
            module: nn.Module = self.find_class(name).from_single_file(
                str(self.file), config=str(self.fetch()), subfolder=name, local_files_only=True
            )
        return module

    def _converted(self, name: str, shapes: Shapes, module: nn.Module) -> Shapes:
        """Shapes of a single file's tensors by the names that diffusers gives them."""
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

        if shapes.keys() == module.state_dict().keys():
            return shapes
        cls = self.classes[name][1]
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        try:
            convert = SINGLE_FILE_LOADABLE_CLASSES[cls]["checkpoint_mapping_fn"]
            converted = convert(config=self.config(name), checkpoint=tensors)
        except (ValueError, LookupError) as error:
            raise UserError(
                f"model.path: {self.file} is not in a layout that diffusers reads as {cls} ({error!r}); give "
                f"a file of the {name} of {self.path}, or a folder"
            ) from error
        return {key: list(tensor.shape) for key, tensor in converted.items()}


def _classes(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    lists = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    return {
        name: (entry[0], entry[1])
        for name, entry in lists.items()
        if len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], str)
    }


def _any_length(hint: Any) -> Any:
    """A type as diffusers means it: it writes tuple[int] for tuples of any length."""
    args = get_args(hint)
    return tuple.__class_getitem__((*args, ...)) if get_origin(hint) is tuple and len(args) == 1 else hint


def _names_when_loaded(module: nn.Module, keys: Sequence[str]) -> dict[str, str]:
    """Key in a file -> name of the parameter that transformers loads it into: files keep older layouts."""
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        return {key: key for key in keys}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = [rule for rule in get_model_conversion_mapping(module) if isinstance(rule, WeightRenaming)]
    state = module.state_dict()
    return {key: rename_source_key(key, mapping, [], module.base_model_prefix, state)[0] for key in keys}


def _differences(module: nn.Module, shapes: Mapping[str, list[int]]) -> tuple[list[str], list[str]]:
    """Tensors that a network asks for in vain, by name and shape, and those that it knows nothing of."""
    state = module.state_dict(keep_vars=True)
    fitting = {id(tensor) for key, tensor in state.items() if shapes.get(key) == list(tensor.shape)}
    # A tied tensor is the same object under each of its names, and one of them is enough.
    lacking = [
        f"{key} of {tuple(tensor.shape)}"
        for key, tensor in state.items()
        if (key in shapes and shapes[key] != list(tensor.shape)) or id(tensor) not in fitting
    ]
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    strange = [
        key for key in shapes if key not in state and not any(re.search(pattern, key) for pattern in ignored)
    ]
    return lacking, strange


def check_vocabulary(folder: Path, rows: int) -> None:
    """Refuse a tokenizer.json that is all but empty, or larger than the `rows` that its text encoder embeds.

    Read as JSON, since transformers takes seconds to build a large tokenizer.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    tokenizer = read_json(file)
    with blamed("model.path", file):
        added = tokenizer.get("added_tokens", [])
        tokens = len(tokenizer.get("model", {}).get("vocab", []))
        ordinary = tokens - sum(token["special"] for token in added)
        size = max(tokens, *(token["id"] + 1 for token in added), 0)
    if ordinary <= 1:  # transformers saves a lost vocabulary as the special tokens and the word mark
        raise UserError(
            f"model.path: {file} has {tokens} tokens, all but {max(ordinary, 0)} of them special; "
            "fetch the model again"
        )
    if size > rows:
        raise UserError(
            f"model.path: {file} has {size} tokens and the text encoder embeds {rows}; copy the "
            "tokenizer of this model there"
        )
