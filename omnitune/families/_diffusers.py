"""What every diffusers family shares: components come from a pipeline folder and go back into one."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..random import Draw
from ..types import Bucket, Mistakes, UserError
from ._files import ModelFiles, read_json
from .base import Denoiser, Sampling


class DiffusersFamily(Denoiser):
    """Components by name from a pipeline folder, loaded when they are needed and dropped when not."""

    core = "transformer"
    autoencoder = "vae"
    networks: ClassVar[tuple[str, ...]]
    """Components that are networks, in the order in which `plan` lists them."""
    others: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")
    """Components that the family needs and that are no networks."""
    fp32: ClassVar[tuple[str, ...]] = ("vae",)
    """Components that compute in fp32 whatever `model.dtype` says, as the published pipeline advises."""
    adapter_components: ClassVar[tuple[str, ...]] = ("transformer",)
    """Components whose LoRA the published pipeline can load."""
    pipeline_class: ClassVar[Any]

    def __init__(self, files: ModelFiles, device: str, dtype: torch.dtype, options: Any):
        self.files, self.device, self.dtype, self.options = files, torch.device(device), dtype, options
        self.components = nn.ModuleDict()

    @staticmethod
    def quiet() -> None:
        """Keep the libraries' progress bars and hints off the terminal: our own lines say what matters."""
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        for logging in (diffusers_logging, transformers_logging):
            logging.set_verbosity_error()
            logging.disable_progress_bar()

    @classmethod
    @abstractmethod
    def tiny(cls, vocab_size: int, **sizes: int) -> dict[str, Any]:
        """Random networks and the scheduler of a small pipeline in which no constant is neutral."""

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
    ) -> Self:
        cls.quiet()
        cls._check_replaced(replaced or {})
        if device != "meta":
            ModelFiles(path, revision).download([])  # its own configurations, not those that ship with us
        family = cls(ModelFiles(path, revision, replaced or {}), device, dtype, options)
        missing = [n for n in (*cls.networks, *cls.others) if n not in family.files.classes]
        if missing:
            raise UserError(f"model.path: {path!r} has no {', '.join(missing)}; family {cls.name} needs it")
        family.fetch(cls.networks if only is None else only)
        return family

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
                param.data = param.data.to(self.component_dtype(name))
        return module

    def _load(self, name: str) -> nn.Module:
        folder = self.files.weights(name)
        dtype = {
            "dtype" if self.files.classes[name][0] == "transformers" else "torch_dtype": self.component_dtype(
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
        with mistakes.noted():
            folder = self.files.found("tokenizer")
            if folder is None:
                absent.append("tokenizer")
            else:
                self._check_vocabulary(folder)
        with mistakes.noted():
            self.scheduler()
        mistakes.raise_all()
        return absent

    @property
    def source(self) -> str:
        return self.files.source

    def component_dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.fp32 else self.dtype

    def blocks(self, component: str) -> list[nn.Module]:
        module = self.components[component]
        names = getattr(module, "_repeated_blocks", None) or getattr(module, "_no_split_modules", None) or ()
        return [m for m in module.modules() if type(m).__name__ in names]

    def weight_files(self, component: str) -> list[Path]:
        beside = component.replace("text_encoder", "tokenizer")
        names = [component, beside] if beside in self.files.classes else [component]
        return sorted(p for name in names for p in self.files.component(name).rglob("*") if p.is_file())

    @cached_property
    def tokenizer(self) -> Any:
        folder = self.files.found("tokenizer") or self.files.weights("tokenizer")
        self._check_vocabulary(folder)
        try:
            return self.files.find_class("tokenizer").from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.path: {folder} cannot be loaded: {error}; fetch the model again"
            ) from error

    def _check_vocabulary(self, folder: Path) -> None:
        """Refuse a tokenizer.json that is all but empty, or larger than what the text encoder embeds.

        Read as JSON, since transformers takes seconds to build a large tokenizer.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            return
        tokenizer = read_json(file)
        added = tokenizer.get("added_tokens", [])
        tokens = len(tokenizer.get("model", {}).get("vocab", []))
        ordinary = tokens - sum(token["special"] for token in added)
        if ordinary <= 1:  # transformers saves a lost vocabulary as the special tokens and the word mark
            raise UserError(
                f"model.path: {file} has {tokens} tokens, all but {max(ordinary, 0)} of them special; "
                "fetch the model again"
            )
        size = max(tokens, *(token["id"] + 1 for token in added), 0)
        config = self.files.config("text_encoder")
        rows = self.files.find_class("text_encoder").config_class.from_dict(config).vocab_size
        if size > rows:
            raise UserError(
                f"model.path: {file} has {size} tokens and the text encoder embeds {rows}; copy the "
                "tokenizer of this model there"
            )

    @staticmethod
    def clean_caption(caption: str) -> str:
        """A caption as the published pipeline hands it to the tokenizer."""
        return caption

    def cut_captions(self, captions: Sequence[str]) -> list[int]:
        tokens = self.tokenizer([self.clean_caption(caption) for caption in captions]).input_ids
        return [i for i, ids in enumerate(tokens) if len(ids) > self.options.text_length]

    def scheduler(self) -> Any:
        return self.files.find_class("scheduler").from_config(self.files.config("scheduler"))

    @contextmanager
    def complete(self) -> Iterator[Any]:
        """All networks loaded and in evaluation mode for a while; what was not there before goes again."""
        before = list(self.components)
        modes = {module: module.training for module in self.components.modules()}
        self.fetch(self.networks)
        self.components.eval()
        # The pipeline asks the core for its dtype and meets fp32 masters: its inputs are cast back.
        hook = self.components[self.core].register_forward_pre_hook(self._cast_inputs, with_kwargs=True)
        try:
            yield self.pipeline_class(
                **{n: self.components[n] for n in self.networks},
                tokenizer=self.tokenizer,
                scheduler=self.scheduler(),
            )
        finally:
            hook.remove()
            self.drop([n for n in self.components if n not in before])
            for module, training in modes.items():
                module.training = training

    def _cast_inputs(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Cast latents and embeddings, (B, C, ...) and (B, L, D), but no timesteps, (B,) or (B, S)."""
        dtype = self.component_dtype(self.core)
        wide = {
            k: v for k, v in kwargs.items() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 2
        }
        return args, {**kwargs, **{k: v.to(dtype) for k, v in wide.items()}}

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Send pixels (B, 3, T, H, W) in [-1, 1] through the VAE and back, by the mean of the posterior."""
        vae: Any = self.components["vae"]
        stage = next(stage for stage in self.stages if "pixels" in stage.needs)
        moments = stage.run({"pixels": pixels}, Draw(0, range(len(pixels))))["moments"]
        mean, _ = moments.chunk(2, dim=1)
        decoded: Tensor = vae.decode(mean.to(vae.dtype)).sample.float().clamp(-1, 1)
        return decoded if decoded.ndim == 5 else decoded.unsqueeze(2)  # VAEs of pictures know no time

    def sample(self, wanted: Sequence[Sampling], progress: bool = False) -> list[Tensor]:
        with self.complete() as pipe, torch.no_grad():
            pipe.set_progress_bar_config(disable=not progress)
            return [self._frames(self.generate(pipe, one)) for one in wanted]

    def generate(self, pipe: Any, wanted: Sampling) -> Any:
        """Call the pipeline; (1, T, H, W, 3) in [0, 1]."""
        size: Bucket = wanted.bucket
        return pipe(
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            height=size.height,
            width=size.width,
            num_frames=size.frames,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance,
            generator=torch.Generator().manual_seed(wanted.seed),
            output_type="np",
        ).frames

    @staticmethod
    def _frames(video: Any) -> Tensor:
        return torch.from_numpy(video[0]).mul(255).round().clamp(0, 255).to(torch.uint8)

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
        if adapters:
            states = {f"{name}_lora_layers": dict(state) for name, state in adapters.items()}
            notes = {
                f"{name}_lora_adapter_metadata": self.adapter_config(name).to_dict() for name in adapters
            }
            self.pipeline_class.save_lora_weights(folder, **states, **notes)
        for name, state in full.items():
            module: Any = self._meta(name)
            module.load_state_dict(dict(state), assign=True)
            module.save_pretrained(folder / name)
