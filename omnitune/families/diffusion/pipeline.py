"""What every diffusers family shares: components come from a pipeline folder and go back into one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import Mistakes, UserError
from ...sampling import Sampling
from ..base import Denoiser, LoadRequest
from ..files import blamed
from .files import ModelFiles, check_vocabulary

LORA_FILE = "pytorch_lora_weights.safetensors"
POOLED = ("pooled_projections", "text_embeds")
"""Inputs of (B, D) that are embeddings, where others of two dims are timesteps or sizes."""


class DiffusersFamily(Denoiser):
    """Components by name from a pipeline folder, loaded when they are needed and dropped when not."""

    core = "transformer"
    autoencoder = "vae"
    libraries = ("diffusers", "transformers")
    text_option: ClassVar[str | None] = "text_length"
    networks: ClassVar[tuple[str, ...]]
    """Components that are networks, in the order in which `plan` lists them."""
    others: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")
    """Components that the family needs and that are no networks."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those of both that some checkpoints have and some have not."""
    least_text: ClassVar[int] = 1
    """The smallest number of tokens of text that the model works with."""
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "t5"}
    """Tokenizer -> its kind, as `omnitune.testing.tiny` trains small ones."""
    fp32: ClassVar[tuple[str, ...]] = ("vae",)
    """Components that compute in fp32 whatever `model.dtype` says, as the published pipeline advises."""
    adapter_components: ClassVar[tuple[str, ...]] = ("transformer",)
    formats = ("diffusers",)
    pipeline_class: ClassVar[Any]
    same_weights: ClassVar[tuple[str, ...]] = ()
    """Further pipelines whose checkpoints are trained as that class's."""
    files: ModelFiles

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        self._check_pipeline()
        missing = {*self.networks, *self.others} - {*self.optional, *self.files.classes}
        if missing:
            names = ", ".join(name for name in (*self.networks, *self.others) if name in missing)
            raise UserError(
                f"{self.files.key}: {self.files.path!r} has no {names}; family {self.name} needs it"
            )
        self._processors: dict[str, Any] = {}
        if self.text_option and self.text_length < self.least_text:
            raise UserError(
                f"model.options.{self.text_option}: {self.text_length} is not {self.least_text} or more"
            )

    @classmethod
    def pipelines(cls) -> list[str]:
        """Classes of pipelines whose checkpoints the family trains, as model_index.json names them."""
        own = [cls.pipeline_class, cls.image_pipeline_class]
        return [*(one.__name__ for one in own if one is not None), *cls.same_weights]

    def _check_pipeline(self) -> None:
        """Refuse the model of another family, or of none, before anything of it is read."""
        if self.files.folder is None:  # known by the configuration that ships with it
            named, known = "the model of another family", self.files.path in self.variants.values()
        else:
            found = self.files.index.get("_class_name")
            named, known = f"a {found}", found is None or found in self.pipelines()
        if not known:
            takers = families_of(self.files)
            out = f"set family: {takers[0]}" if takers else f"give a model of {self.pipelines()[0]}"
            raise UserError(
                f"{self.files.key}: {self.files.path} is {named}, and family {self.name} trains "
                f"{' and '.join(self.pipelines())}; {out}"
            )

    @property
    def text_length(self) -> int:
        """Tokens that a caption is cut to."""
        if self.text_option is None:
            return int(self.tokenizer.model_max_length)
        return int(getattr(self.options, self.text_option))

    @property
    def parts(self) -> list[str]:
        return [name for name in self.networks if name in self.files.classes]

    def open_files(self, request: LoadRequest) -> ModelFiles:
        # A tokenizer, or a network of another family, would be passed over.
        if strangers := [str(path) for name, path in request.replaced.items() if name not in self.networks]:
            raise UserError(
                f"init_from: {', '.join(strangers)}: not a network of family {self.name} "
                f"({', '.join(self.networks)}); remove it, or give the whole pipeline as model.path"
            )
        folder = request.config or request.path
        if request.config is None:
            return ModelFiles(folder, request.revision, self.configs, replaced=request.replaced)
        file = Path(request.path).expanduser()
        if not file.is_file():
            raise UserError(f"model.path: {file} is not there; give the file of a {self.core}")
        return ModelFiles(
            folder, request.revision, self.configs, "model.config", request.replaced, file, self.core
        )

    def load_component(self, name: str) -> nn.Module:
        if self.device.type == "meta":
            return self.published(name)
        if not self.files.in_file(name):
            return self.files.load(name, self.compute_dtype(name))
        # diffusers does not say what a single file lacks.
        assert self.files.file is not None
        self.files.check_tensors(name, self.files.file, self.published(name))
        return self._cast(name, self.files.load_from_file(name))

    def published(self, name: str) -> nn.Module:
        """A network as it is published, on the meta device."""
        cls = self.files.find_class(name)
        self._check_class(name, cls)
        config = self.files.config(name)
        with torch.device("meta"), blamed(self.files.option(name), f"config.json of {name}"):
            if self.files.classes[name][0] == "diffusers":
                return self._cast(name, cls.from_config(config))
            return self._cast(name, cls(cls.config_class.from_dict(config)))

    def _check_class(self, name: str, cls: Any) -> None:
        """Refuse a network that is none, or not the one that the pipeline says it has."""
        if not issubclass(cls, nn.Module):
            raise UserError(
                f"{self.files.key}: {name} of {self.files.path} is a {cls.__name__}, no network; "
                "fetch it again"
            )
        wanted = signature(self.pipeline_class).parameters.get(name)
        kind = getattr(wanted, "annotation", None)
        if name in (self.core, self.autoencoder) and isinstance(kind, type) and not issubclass(cls, kind):
            raise UserError(
                f"{self.files.key}: {name} of {self.files.path} is a {cls.__name__}, and family {self.name} "
                f"trains a {kind.__name__}; give a model of {self.pipeline_class.__name__}"
            )

    def on_meta(self, name: str) -> nn.Module:
        """A network as the family has it, changed where that was asked for, on the meta device."""
        return self.changed(name, self.published(name))

    def _cast(self, name: str, module: nn.Module) -> nn.Module:
        """Bring a network to its dtype, but what diffusers' from_pretrained keeps in fp32."""
        of_diffusers = self.files.classes[name][0] == "diffusers"
        kept = tuple(getattr(module, "_keep_in_fp32_modules", None) or ()) if of_diffusers else ()
        for path, param in module.named_parameters():
            if not any(part in path for part in kept):
                param.data = param.data.to(self.compute_dtype(name))
        return module

    def check_weights(self, components: Sequence[str]) -> list[str]:
        mistakes = Mistakes()
        absent = []
        for name in components:
            if name in self.extras:
                continue
            with mistakes.noted():
                path = self.files.find(name)
                if path is None:
                    absent.append(name)
                else:  # files are as the network was published, before it was changed
                    module = self.published(name) if name in self._changes else self.components[name]
                    self.files.check_tensors(name, path, module)
        for name in self.processors:
            with mistakes.noted():
                folder = self.files.find(name)
                if folder is None:
                    absent.append(name)
                elif name in self.tokenizers:
                    self._check_vocabulary(name, folder)
        with mistakes.noted():
            self.scheduler()
        mistakes.raise_all()
        return absent

    def compute_dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.fp32 else self.dtype

    def weight_files(self, component: str) -> list[Path]:
        if component in self.extras:
            return []
        beside = [component.replace("text_encoder", "tokenizer"), component.replace("encoder", "processor")]
        names = [component, *(n for n in beside if n != component and n in self.files.classes)]
        return sorted(path for name in names for path in self.files.deciding(name))

    @property
    def processors(self) -> list[str]:
        """The tokenizers and image processors that this checkpoint has."""
        return [name for name in self.others if name in self.files.classes and name != "scheduler"]

    def processor(self, name: str) -> Any:
        """A tokenizer or an image processor, loaded once."""
        if name not in self._processors:
            folder = self.files.find(name) or self.files.weights(name)
            if name in self.tokenizers:
                self._check_vocabulary(name, folder)
            with blamed(self.files.key, folder):
                self._processors[name] = self.files.find_class(name).from_pretrained(folder)
        return self._processors[name]

    @property
    def tokenizer(self) -> Any:
        """The one whose text may be cut."""
        return self.processor("tokenizer")

    def _check_vocabulary(self, name: str, folder: Path) -> None:
        encoder = name.replace("tokenizer", "text_encoder")
        with blamed(self.files.option(encoder), f"config.json of {encoder}"):
            config = self.files.find_class(encoder).config_class.from_dict(self.files.config(encoder))
            rows = int(config.get_text_config().vocab_size)
        check_vocabulary(folder, rows)

    @staticmethod
    def clean_caption(caption: str) -> str:
        """A caption as the published pipeline hands it to the tokenizer."""
        return caption

    def cut_captions(self, captions: Sequence[str]) -> list[int]:
        tokens = self.tokenizer([self.clean_caption(caption) for caption in captions]).input_ids
        return [i for i, ids in enumerate(tokens) if len(ids) > self.text_length]

    def scheduler(self) -> Any:
        with blamed(self.files.key, "scheduler_config.json"):
            return self.files.find_class("scheduler").from_config(self.files.config("scheduler"))

    @property
    def pipeline_type(self) -> Any:
        """The published pipeline that generates with these weights, where no condition names another."""
        return self.image_pipeline_class if self.frames_required else self.pipeline_class

    def pipeline(self, kind: Any = None) -> Any:
        """The published pipeline around what is loaded; None takes the place of the rest."""
        cls = kind or self.pipeline_type
        taken = signature(cls).parameters
        given: dict[str, Any] = {name: None for name, one in taken.items() if one.default is one.empty}
        given |= {name: module for name, module in self.components.items() if name in taken}
        given |= {name: self.processor(name) for name in self.processors if name in taken}
        given |= {name: value for name, value in self.files.pipeline_config.items() if name in taken}
        return cls(**{**given, "scheduler": self.scheduler()})

    @contextmanager
    def complete(self) -> Iterator[Any]:
        """All networks loaded and in evaluation mode for a while; what was not there before goes again."""
        before = list(self.components)
        with self.evaluating():
            self.fetch(self.parts)
            # The pipeline asks the core for its dtype and meets fp32 masters: its inputs are cast back.
            hooks = [
                self.components[core].register_forward_pre_hook(self._cast_inputs, with_kwargs=True)
                for core in self.cores
            ]
            try:
                yield self.pipeline()
            finally:
                for hook in hooks:
                    hook.remove()
                self.drop([n for n in self.components if n not in before])

    def _cast_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cast latents and embeddings, (B, C, ...), (B, L, D), (B, D), but no timesteps, (B,) or (B, S)."""
        dtype = self.compute_dtype(self.core)

        def cast(value: Any, name: str = "") -> Any:
            if isinstance(value, dict):
                return {key: cast(held, key) for key, held in value.items()}
            wide = isinstance(value, Tensor) and (value.ndim > 2 or name in POOLED)
            return value.to(dtype) if wide and value.is_floating_point() else value

        return tuple(map(cast, args)), cast(kwargs)

    def sample(self, requests: Sequence[Sampling], progress: bool = False) -> list[Tensor]:
        with self.complete(), torch.no_grad():
            requests = [self.conditioned(request) for request in requests]
            pipes = {kind: self.pipeline(kind) for kind in {request.pipeline for request in requests}}
            for pipe in pipes.values():
                pipe.set_progress_bar_config(disable=not progress)
            videos = (self.generate(pipes[request.pipeline], request)[0] for request in requests)
            return [torch.from_numpy(v).mul(255).round().clamp(0, 255).to(torch.uint8) for v in videos]

    def generate(self, pipe: Any, request: Sampling) -> Any:
        """Call the pipeline; (1, T, H, W, 3) in [0, 1]."""
        taken = signature(pipe.__call__).parameters
        arguments = {name: value for name, value in self.call(request).items() if name in taken}
        arguments |= {"generator": self.generator(request), "output_type": "np", **request.keywords}
        with self.wrapped(request):
            output = pipe(**arguments)
        return output.frames if hasattr(output, "frames") else output.images[:, None]

    @contextmanager
    def wrapped(self, request: Sampling) -> Iterator[None]:
        """The cores within a request's wrappers, for a while."""
        with ExitStack() as undo:
            for core in (self.components[name] for name in self.cores if request.wrappers):
                if (own := vars(core).get("forward")) is None:
                    undo.callback(delattr, core, "forward")
                else:  # the network's forward was replaced before
                    undo.callback(setattr, core, "forward", own)
                for wrapper in request.wrappers:
                    core.forward = wrapper(core.forward)
            yield

    def generator(self, request: Sampling) -> torch.Generator:
        """Of a sample's noise: on the CPU, the same numbers for every device."""
        return torch.Generator().manual_seed(request.seed)

    def call(self, request: Sampling) -> dict[str, Any]:
        """Keywords of the pipeline's call; those that it does not take are left out."""
        return {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "height": request.bucket.height,
            "width": request.bucket.width,
            "num_frames": request.bucket.frames,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "max_sequence_length": self.text_length,
        }

    def adapter_files(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """File -> the component, as the pipeline's loader calls it -> ours, whose adapter it holds."""
        return {LORA_FILE: {name: name for name in names}} if names else {}


def families_of(files: ModelFiles) -> list[str]:
    """Name the families of this package that train a model."""
    from .. import REGISTRY, resolve

    classes = {name: resolve(name) for name in REGISTRY}
    named = None if files.folder is None else files.index.get("_class_name")
    return [
        name
        for name, cls in classes.items()
        if issubclass(cls, DiffusersFamily)
        and (files.path in cls.variants.values() if named is None else named in cls.pipelines())
    ]
