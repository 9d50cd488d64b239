"""Vision-language models that transformers loads: questions about pictures and clips, answered in text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ...batch import Batch
from ...data.conversations.conversation import Conversation, Media, Message
from ...data.conversations.options import ChatOptions
from ...data.media import probe
from ...errors import UserError
from ...files import File
from ...options import NOT_LEARNED, option
from ...random import Draw
from ...stages import Stage
from ..base import Checkpoint, Question, Responder
from .chat import Chat, collate
from .export import write_adapter, write_full, write_merged
from .files import VlmFiles, quiet
from .head import losses_for_logits
from .packing import SEGMENT, block_mask, packed, refuse_packing
from .rows import KINDS, has, queues_of, rows_of, seen_in, unseen
from .start import MODEL, PeftFolders
from .tokens import OPTION, check_spelling, token_parameters
from .tower_cache import Player, recorded, stripped_class
from .types import TYPES, VlmType, module_tree, roles_of

VISION, PROJECTOR, LANGUAGE = "vision_tower", "multi_modal_projector", "language_model"


@option
class VlmOptions:
    roles: dict[str, list[str]] | None = None
    """For a model type without an entry: role -> prefixes of the model's own parameter names."""
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], NOT_LEARNED] = "sdpa"
    """How attention is computed."""
    chat_template: Path | None = None
    """Jinja file to use in the place of the processor's own template."""
    add_tokens: tuple[str, ...] = ()
    """Tokens that the model is to have beside its own; their embeddings train beside what the rules train."""

    def __post_init__(self) -> None:
        check_spelling(self.add_tokens)


class Vlm(Responder):
    name = "vlm"
    core = MODEL
    exports_whole = False
    tasks = ("image-text-to-text", "video-text-to-text")
    adapter_components = (MODEL,)
    lora_targets = (f"{LANGUAGE}.*_proj", f"{LANGUAGE}.*.*_proj", f"{LANGUAGE}.*.fc?")
    licence = "as the model's page says"
    Options = VlmOptions
    layout = PeftFolders()
    variants: ClassVar[Mapping[str, str]] = {
        "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen3_vl": "Qwen/Qwen3-VL-4B-Instruct",
        "smolvlm": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "llava": "llava-hf/llava-1.5-7b-hf",
        "gemma3": "google/gemma-3-4b-it",
        "internvl": "OpenGVLab/InternVL3-1B-hf",
    }

    def __init__(self, files: VlmFiles, device: str, dtype: torch.dtype, options: Any = None):
        self.files, self.device, self.dtype = files, torch.device(device), dtype
        self.options: VlmOptions = options or VlmOptions()
        self.components = nn.ModuleDict()
        self.player: Player | None = None
        self.without: Sequence[str] | None = None

    # Loading

    @classmethod
    def checkpoint(cls, variant: str | None = None) -> Checkpoint:
        return Checkpoint(cls.variants[variant or next(iter(cls.variants))], None, None)

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
        quiet()
        start, tokens = (replaced or {}).get(MODEL), options.add_tokens if options else ()
        family = cls(VlmFiles(path, revision, start, tokens), device, dtype, options)
        family.without = without
        family.fetch([MODEL] if only is None else only)
        return family

    def fetch(self, names: Sequence[str]) -> None:
        if MODEL not in names or MODEL in self.components:
            return
        if self.device.type == "meta":
            self.components[MODEL] = self.files.meta(self.dtype)
            self._check_roles()
            return
        self.components[MODEL] = self._loaded().requires_grad_(False).eval().to(self.device)
        if self.without:
            assert self.type.cut is not None
            self.player = Player(self.model, self.type.cut, self._own(self.without))

    def _loaded(self) -> nn.Module:
        cls = self.files.model_class
        if self.without:
            cls = stripped_class(cls, self._own(self.without))
        model: Any = self.files.load(cls, self.dtype)
        model.set_attn_implementation(self.options.attention)
        found: nn.Module = model
        return found

    def drop(self, names: Sequence[str]) -> None:
        if MODEL in names and MODEL in self.components:
            del self.components[MODEL]

    @property
    def model(self) -> Any:
        return self.components[MODEL]

    # What it is made of

    @property
    def model_type(self) -> str:
        return str(self.files.config.model_type)

    @property
    def type(self) -> VlmType:
        """What is known of the model's type, or stated in the options."""
        known = TYPES.get(self.model_type)
        if self.options.roles is None:
            if known is None:
                raise UserError(
                    f"model.options.roles: nothing is known of the type {self.model_type!r}; state which "
                    f"parameters are what:\n{module_tree(self.files.meta(self.dtype))}"
                )
            return known
        stated = {role: tuple(prefixes) for role, prefixes in self.options.roles.items()}
        if known is not None and stated != dict(known.roles):
            raise UserError(
                f"model.options.roles: the roles of {self.model_type} are known; leave the option out"
            )
        return known or VlmType(roles=stated)

    def _check_roles(self) -> None:
        roles_of(self.model, self.type.roles)

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        return {
            role: tuple(f"{MODEL}.{prefix}" for prefix in prefixes)
            for role, prefixes in self.type.roles.items()
        }

    @property
    def always_trained(self) -> Mapping[str, Sequence[str]]:
        if not self.options.add_tokens:
            return {}
        return {OPTION: [f"{MODEL}.{name}" for name in token_parameters(self.model)]}

    @staticmethod
    def _own(names: Sequence[str]) -> list[str]:
        """Names as the model itself has them."""
        return [name.removeprefix(f"{MODEL}.") for name in names]

    @property
    def language_model(self) -> nn.Module:
        """The module that takes the embeddings of tokens and pictures."""
        found: nn.Module = self.model.get_submodule(self.type.roles[LANGUAGE][0])
        return found

    def blocks(self, component: str) -> list[nn.Module]:
        names = set(getattr(self.model, "_no_split_modules", None) or ())
        return [m for m in self.components[component].modules() if type(m).__name__ in names]

    def weight_files(self, component: str) -> list[Path]:
        return self.files.deciding

    def check_weights(self, components: Sequence[str]) -> list[str]:
        if not self.files.check_weights():
            return [MODEL]
        _ = self.files.processor
        return []

    @property
    def source(self) -> str:
        return self.files.source

    # From conversations to tensors

    def chat(self, options: Any) -> Chat:
        template = self.type.prompt
        if self.options.chat_template is not None:
            if not self.options.chat_template.is_file():
                raise UserError(f"model.options.chat_template: {self.options.chat_template} is not there")
            template = self.options.chat_template.read_text()
        return Chat(self.files.processor, self.model_type, options, template)

    def check_packing(self) -> None:
        """Raise UserError where conversations of this type cannot share a row."""
        refuse_packing(self.model_type, self.type)

    @property
    def stages(self) -> list[Stage]:
        """The vision tower, where its output can be stored and played back."""
        cut = self.type.cut
        if cut is None or VISION not in self.type.roles:
            return []
        gives = tuple(f"{kind}{i}" for kind in KINDS for i in range(len(cut.inputs)))
        return [Stage("vision", self.roles[VISION], ("media",), gives, self._see, ragged=gives)]

    def _see(self, batch: Batch, draw: Draw) -> Batch:
        """What leaves the tower for the media of each row; nothing where it runs in the step."""
        if self.without is not None:
            return {}
        assert self.type.cut is not None
        rows = [seen_in(row, self.type.cut, self._calls, self.device) for row in batch["media"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _calls(self, inputs: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        assert self.type.cut is not None
        if not has(inputs, "image") and not has(inputs, "video"):
            return {spot: [] for spot in self.type.cut.inputs}
        row = {k: v.to(self.device) for k, v in collate([inputs], self._pad).items() if k != "labels"}
        with torch.no_grad(), recorded(self.model, self.type.cut, self.language_model) as calls:
            self.model(**self._cast(row), use_cache=False)
        return calls

    @property
    def _pad(self) -> int:
        tokenizer = self.files.processor.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def _cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels in the dtype in which the tower computes."""
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}

    def token_losses(self, batch: Batch, *, chunk: int, label_smoothing: float) -> Tensor:
        rows = rows_of(batch, played=self.player is not None)
        if any(len(row) > 1 for row in rows):
            joined = [packed(row, self.model, self.type) for row in rows]
        else:
            joined = [row[0] for row in rows]
        inputs = {k: v.to(self.device) for k, v in collate(joined, self._pad).items()}
        labels = inputs.pop("labels")
        if SEGMENT in inputs:
            inputs["attention_mask"] = block_mask(inputs.pop(SEGMENT))
        with (
            self._playing(batch),
            unseen(self.model, self.type, inputs, self.dtype),
            losses_for_logits(self.model, labels, chunk=chunk, label_smoothing=label_smoothing),
        ):
            losses: Tensor = self.model(**self._cast(inputs), use_cache=False).logits
        return losses.sum(1)

    def _playing(self, batch: Batch) -> AbstractContextManager[None]:
        if self.player is None:
            return nullcontext()
        return self.player.playing(queues_of(batch, self.player.cut))

    # Answers

    @contextmanager
    def complete(self) -> Iterator[Any]:
        """The model with its tower, in evaluation mode, for a while."""
        modes = {module: module.training for module in self.components.modules()}
        self.components.eval()
        restore = self._with_tower() if self.player is not None else nullcontext()
        try:
            with restore:
                yield self.model
        finally:
            for module, training in modes.items():
                module.training = training

    @contextmanager
    def _with_tower(self) -> Iterator[None]:
        assert self.player is not None
        assert self.without is not None
        whole = self.files.load(self.files.model_class, self.dtype).to(self.device)
        with self.player.paused(whole):
            yield

    def sample(self, wanted: Sequence[Question], progress: bool = False) -> list[str]:
        chat = self.chat(ChatOptions())
        with self.complete() as model, torch.no_grad():
            return [self._answer(model, chat.ask(asked(one)), one.max_tokens) for one in wanted]

    def answers(self, chat: Chat, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
        """What the model says next in each conversation, greedily."""
        with self.complete() as model, torch.no_grad():
            return [self._answer(model, chat.ask(one), max_tokens) for one in conversations]

    def _answer(self, model: Any, prompt: Batch, max_tokens: int) -> str:
        inputs = {k: v.to(self.device) for k, v in prompt.items()}
        made = model.generate(
            **self._cast(inputs), max_new_tokens=max_tokens, do_sample=False, pad_token_id=self._pad
        )
        new = made[0, inputs["input_ids"].shape[1] :]
        return str(self.files.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()

    # Results

    def export(
        self,
        folder: Path,
        adapters: Mapping[str, Mapping[str, Tensor]],
        full: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        trained = dict(full.get(MODEL, {}))
        if adapters:
            write_adapter(folder, self, dict(adapters[MODEL]), trained)
        else:
            write_full(folder, self, trained)

    def export_merged(
        self,
        folder: Path,
        adapters: Mapping[str, Mapping[str, Tensor]],
        full: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        if getattr(self.files.config, "quantization_config", None) is not None:
            raise UserError(
                f"--merged: {self.files.base} is quantised, and an adapter cannot be added to its weights "
                "without loss; give the model it was made of as model.path, or use the adapter as it is"
            )
        if not adapters:
            raise UserError("--merged: nothing was trained by LoRA, weights/ is whole already; leave it out")
        write_merged(folder, self, adapters[MODEL], full.get(MODEL, {}))


def asked(question: Question) -> Conversation:
    parts: list[str | Media] = []
    if question.image is not None:
        seen = probe(question.image)
        parts.append(Media("image", (File(question.image),), seen.width, seen.height))
    return Conversation("question", (Message("user", (*parts, question.prompt)),), question.prompt)
