"""What every diffusers family shares: components come from a pipeline folder and go back into one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...errors import Mistakes, UserError
from ..base import Checkpoint, Defaults, Denoiser, Sampling
from .files import ModelFiles, check_vocabulary

LORA_FILE = "pytorch_lora_weights.safetensors"


class DiffusersFamily(Denoiser):
    """Components by name from a pipeline folder, loaded when they are needed and dropped when not."""

    core = "transformer"
    autoencoder = "vae"
    networks: ClassVar[tuple[str, ...]]
    """Components that are networks, in the order in which `plan` lists them."""
    others: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")
    """Components that the family needs and that are no networks."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those of both that some checkpoints have and some have not."""
    least_text: ClassVar[int] = 1
    """Tokens of text."""
    tokenizers: ClassVar[Mapping[str, str]] = {"tokenizer": "t5"}
    """Tokenizer -> its kind, as `omnitune.testing.tiny` trains small ones."""
    fp32: ClassVar[tuple[str, ...]] = ("vae",)
    """Components that compute in fp32 whatever `model.dtype` says, as the published pipeline advises."""
    adapter_components: ClassVar[tuple[str, ...]] = ("transformer",)
    """Components whose LoRA the published pipeline can load."""
    pipeline_class: ClassVar[Any]

    def __init__(self, files: ModelFiles, device: str, dtype: torch.dtype, options: Any = None):
        self.files, self.device, self.dtype = files, torch.device(device), dtype
        self.options = self.Options() if options is None else options
        if self.options.text_length < self.least_text:
            raise UserError(
                f"model.options.text_length: {self.options.text_length} is not {self.least_text} or more"
            )
        self.components = nn.ModuleDict()
        self._processors: dict[str, Any] = {}

    @staticmethod
    def quiet() -> None:
        """Keep the libraries' progress bars and hints off the terminal: our own lines say what matters."""
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        for logging in (diffusers_logging, transformers_logging):
            logging.set_verbosity_error()
            logging.disable_progress_bar()

    @classmethod
    def checkpoint(cls, variant: str | None = None) -> Checkpoint:
        path = cls.variants[variant or next(iter(cls.variants))]
        found = ModelFiles(path).published
        assert found is not None, path
        return Checkpoint(path, found.get("frame_conditioning"), Defaults(**found["defaults"]))

    @classmethod
    def load(
        cls,
        path: str,
        device: str,
        dtype: torch.dtype,
        *,
        only: Sequence[str] | None = None,
        options: Any = None,
        revision: str | None = None,
        replaced: Mapping[str, Path] | None = None,
        without: Sequence[str] | None = None,
    ) -> Self:
        cls.quiet()
        cls._check_replaced(replaced or {})
        if device != "meta":
            ModelFiles(path, revision).download([])  # its own configurations, not those that ship with us
        family = cls(ModelFiles(path, revision, replaced or {}), device, dtype, options)
        asked = [n for n in (*cls.networks, *cls.others) if n not in cls.optional]
        missing = [n for n in asked if n not in family.files.classes]
        if missing:
            raise UserError(f"model.path: {path!r} has no {', '.join(missing)}; family {cls.name} needs it")
        family.fetch(family.parts if only is None else only)
        return family

    @property
    def parts(self) -> list[str]:
        """The networks that this checkpoint has."""
        return [name for name in self.networks if name in self.files.classes]

    @classmethod
    def _check_replaced(cls, replaced: Mapping[str, Path]) -> None:
        """Refuse a folder that would be passed over, such as a tokenizer or a network of another family."""
        if strangers := [str(path) for name, path in replaced.items() if name not in cls.networks]:
            raise UserError(
                f"init_from: {', '.join(strangers)}: not a network of family {cls.name} "
                f"({', '.join(cls.networks)}); remove it, or give the whole pipeline as model.path"
            )

    def fetch(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.components:
                self.components[name] = self._meta(name) if self.device.type == "meta" else self._load(name)

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self.components:
                del self.components[name]

    def _meta(self, name: str) -> nn.Module:
        cls, config = self.files.find_class(name), self.files.config(name)
        with torch.device("meta"):
            if hasattr(cls, "from_config"):
                module: nn.Module = cls.from_config(config)
            else:
                module = cls(cls.config_class.from_dict(config))
        kept = tuple(getattr(cls, "_keep_in_fp32_modules", None) or ()) if hasattr(cls, "from_config") else ()
        for path, param in module.named_parameters():
            if not any(part in path for part in kept):  # as diffusers' from_pretrained does
                param.data = param.data.to(self.compute_dtype(name))
        return module

    def _load(self, name: str) -> nn.Module:
        folder = self.files.weights(name)
        dtype = {
            "dtype" if self.files.classes[name][0] == "transformers" else "torch_dtype": self.compute_dtype(
                name
            )
        }
        try:
            module, told = self.files.find_class(name).from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **dtype
            )
        except (OSError, SafetensorError) as error:
            raise UserError(f"model.path: {folder} cannot be loaded: {error}; fetch it again") from error
        lacking = [
            *told["missing_keys"],
            *(f"{key} of {tuple(asked)}" for key, _, asked in told["mismatched_keys"]),
        ]
        self.files.refuse_tensors(name, folder, sorted(lacking), sorted(told["unexpected_keys"]))
        loaded: nn.Module = module
        return loaded.requires_grad_(False).eval().to(self.device)

    def check_weights(self, components: Sequence[str]) -> list[str]:
        mistakes = Mistakes()
        absent = []
        for name in components:
            with mistakes.noted():
                folder = self.files.found(name)
                if folder is None:
                    absent.append(name)
                else:
                    self.files.check_tensors(name, folder, self.components[name])
        for name in self.processors:
            with mistakes.noted():
                folder = self.files.found(name)
                if folder is None:
                    absent.append(name)
                elif name in self.tokenizers:
                    self._check_vocabulary(name, folder)
        with mistakes.noted():
            self.scheduler()
        mistakes.raise_all()
        return absent

    @property
    def source(self) -> str:
        return self.files.source

    def compute_dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.fp32 else self.dtype

    def blocks(self, component: str) -> list[nn.Module]:
        module = self.components[component]
        names = getattr(module, "_repeated_blocks", None) or getattr(module, "_no_split_modules", None) or ()
        return [m for m in module.modules() if type(m).__name__ in names]

    def weight_files(self, component: str) -> list[Path]:
        beside = [component.replace("text_encoder", "tokenizer"), component.replace("encoder", "processor")]
        names = [component, *(n for n in beside if n != component and n in self.files.classes)]
        return sorted(p for name in names for p in self.files.component(name).rglob("*") if p.is_file())

    @property
    def processors(self) -> list[str]:
        """Tokenizers and image processors."""
        return [name for name in self.others if name in self.files.classes and name != "scheduler"]

    def processor(self, name: str) -> Any:
        """A tokenizer or an image processor, loaded once."""
        if name not in self._processors:
            folder = self.files.found(name) or self.files.weights(name)
            if name in self.tokenizers:
                self._check_vocabulary(name, folder)
            try:
                self._processors[name] = self.files.find_class(name).from_pretrained(folder)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"model.path: {folder} cannot be loaded: {error}; fetch the model again"
                ) from error
        return self._processors[name]

    @property
    def tokenizer(self) -> Any:
        """The one whose text may be cut."""
        return self.processor("tokenizer")

    def _check_vocabulary(self, name: str, folder: Path) -> None:
        encoder = name.replace("tokenizer", "text_encoder")
        config = self.files.find_class(encoder).config_class.from_dict(self.files.config(encoder))
        check_vocabulary(folder, config.get_text_config().vocab_size)

    @staticmethod
    def clean_caption(caption: str) -> str:
        """A caption as the published pipeline hands it to the tokenizer."""
        return caption

    def cut_captions(self, captions: Sequence[str]) -> list[int]:
        tokens = self.tokenizer([self.clean_caption(caption) for caption in captions]).input_ids
        return [i for i, ids in enumerate(tokens) if len(ids) > self.options.text_length]

    def scheduler(self) -> Any:
        return self.files.find_class("scheduler").from_config(self.files.config("scheduler"))

    @property
    def pipeline_type(self) -> Any:
        """The published pipeline that generates with these weights and conditions."""
        return self.pipeline_class

    def pipeline(self, kind: Any = None) -> Any:
        """The published pipeline around what is loaded; None takes the place of the rest."""
        cls = kind or self.pipeline_type
        taken = signature(cls.__init__).parameters
        processors = {name: self.processor(name) for name in self.processors if name in taken}
        settings = {k: v for k, v in self.files.pipeline_config.items() if k in taken}
        parts: dict[str, Any] = {name: None for name in (*self.networks, *self.others) if name in taken}
        parts.update(self.components.items())
        return cls(**{**parts, **processors, **settings, "scheduler": self.scheduler()})

    @contextmanager
    def complete(self) -> Iterator[Any]:
        """All networks loaded and in evaluation mode for a while; what was not there before goes again."""
        before = list(self.components)
        modes = {module: module.training for module in self.components.modules()}
        self.fetch(self.parts)
        self.components.eval()
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
            for module, training in modes.items():
                module.training = training

    def _cast_inputs(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Cast latents and embeddings, (B, C, ...), (B, L, D), (B, D), but no timesteps, (B,) or (B, S)."""
        dtype = self.compute_dtype(self.core)
        wide = {
            k: v
            for k, v in kwargs.items()
            if isinstance(v, Tensor) and v.is_floating_point() and (v.ndim > 2 or k == "pooled_projections")
        }
        return args, {**kwargs, **{k: v.to(dtype) for k, v in wide.items()}}

    def sample(self, wanted: Sequence[Sampling], progress: bool = False) -> list[Tensor]:
        with self.complete() as pipe, torch.no_grad():
            # Where frames are optional, samples without any are of the pipeline that takes none.
            pipes = {True: pipe, False: self.pipeline(self.pipeline_class) if self.frames_optional else pipe}
            for each in pipes.values():
                each.set_progress_bar_config(disable=not progress)
            return [self._frames(self.generate(pipes[bool(one.frames)], one)) for one in wanted]

    def generate(self, pipe: Any, wanted: Sampling) -> Any:
        """Call the pipeline; (1, T, H, W, 3) in [0, 1]."""
        taken = signature(pipe.__call__).parameters
        asked = {name: value for name, value in self.call(wanted).items() if name in taken}
        made = pipe(**asked, generator=self.generator(wanted), output_type="np")
        return made.frames if hasattr(made, "frames") else made.images[:, None]

    def generator(self, wanted: Sampling) -> torch.Generator:
        """Of a sample's noise: on the CPU, the same numbers for every device."""
        return torch.Generator().manual_seed(wanted.seed)

    def call(self, wanted: Sampling) -> dict[str, Any]:
        """Keywords of the pipeline's call; those that it does not take are left out."""
        from PIL import Image

        names = {"first_frame": "image", "last_frame": "last_image"}
        return {
            "prompt": wanted.prompt,
            "negative_prompt": wanted.negative_prompt,
            "height": wanted.bucket.height,
            "width": wanted.bucket.width,
            "num_frames": wanted.bucket.frames,
            "num_inference_steps": wanted.steps,
            "guidance_scale": wanted.guidance,
            "max_sequence_length": self.options.text_length,
            **{names[name]: Image.fromarray(frame) for name, frame in wanted.frames.items()},
        }

    @staticmethod
    def _frames(video: Any) -> Tensor:
        return torch.from_numpy(video[0]).mul(255).round().clamp(0, 255).to(torch.uint8)

    def adapter_files(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """File -> the component, as the pipeline's loader calls it -> ours, whose adapter it holds."""
        return {LORA_FILE: {name: name for name in names}} if names else {}

    def adapter_config(self, component: str) -> Any:
        module: Any = self.components[component]
        return module.peft_config["default"]

    def export(
        self,
        folder: Path,
        adapters: Mapping[str, Mapping[str, Tensor]],
        full: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Write adapters (component -> peft state) as one LoRA file and whole components as their folders."""
        for file, names in self.adapter_files(list(adapters)).items():
            states = {f"{part}_lora_layers": dict(adapters[name]) for part, name in names.items()}
            notes = {
                f"{part}_lora_adapter_metadata": self.adapter_config(name).to_dict()
                for part, name in names.items()
            }
            self.pipeline_type.save_lora_weights(folder, weight_name=file, **states, **notes)
        for name, state in full.items():
            module: Any = self._meta(name)
            module.load_state_dict(dict(state), assign=True)
            module.save_pretrained(folder / name)
