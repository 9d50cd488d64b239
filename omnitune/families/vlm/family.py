"""Vision-language models that transformers loads: questions about pictures and clips, answered in text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...batch import Batch, on_device
from ...data.conversations.conversation import Conversation, Media, Message
from ...data.conversations.options import ChatOptions
from ...data.json_items import read_text
from ...data.media import probe
from ...errors import UserError
from ...files import File
from ...options import NOT_LEARNED, option
from ...random import Draw
from ...sampling import Question
from ...stages import Stage
from ..base import LoadRequest, Responder
from ..files import blamed
from .collate import collate
from .encoder import ConversationEncoder
from .files import VlmFiles
from .head import losses_for_logits
from .packing import SEGMENT, block_mask, pack
from .rows import KINDS, conversations_of, hide_absent_pictures, stored_outputs, tower_outputs
from .tokens import OPTION, check_spelling, token_parameters
from .tower_cache import Player, record_outputs, stripped_class
from .types import TYPES, Cut, VlmType, cut_of, module_tree, roles_of

MODEL = "model"
"""The one component: peft and transformers have it whole."""
ATTENTION, FLASH = "model.options.attention", "flash_attention_2"
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
    tasks = ("image-text-to-text", "video-text-to-text")
    adapter_components = (MODEL,)
    lora_targets = (f"{LANGUAGE}.*_proj", f"{LANGUAGE}.*.*_proj", f"{LANGUAGE}.*.fc?")
    licence = "as the model's page says"
    Options = VlmOptions
    formats = ("peft", "merged")
    variants: ClassVar[Mapping[str, str]] = {
        "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen3_vl": "Qwen/Qwen3-VL-4B-Instruct",
        "smolvlm": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "llava": "llava-hf/llava-1.5-7b-hf",
        "gemma3": "google/gemma-3-4b-it",
        "internvl": "OpenGVLab/InternVL3-1B-hf",
    }

    configs = files(__package__) / "configs"
    files: VlmFiles

    def __init__(self, request: LoadRequest):
        super().__init__(request)
        self.player: Player | None = None
        self.asked_as = ChatOptions()
        """How pictures of questions are shown: as the run's data are."""
        self.without = request.without

    # Loading

    def open_files(self, request: LoadRequest) -> VlmFiles:
        if request.config is not None:
            raise UserError(
                f"model.config: {request.path} is a single file, and a vision-language model is loaded from "
                "a folder as `save_pretrained` writes it; give that as model.path, and leave config out"
            )
        start = request.replaced.get(MODEL)
        tokens = self.options.add_tokens
        return VlmFiles(request.path, request.revision, self.configs, start=start, tokens=tokens)

    @property
    def parts(self) -> Sequence[str]:
        return [MODEL]

    def load_component(self, name: str) -> nn.Module:
        if self.device.type == "meta":
            model: Any = self.files.meta(self.dtype)
            roles_of(model, self.type.roles)
            self._check_attention()
            return model  # type: ignore[no-any-return]
        cls = self.files.model_class
        if self.without:
            cls = stripped_class(cls, self._own(self.without))
        model = self.files.load(cls, self.dtype)
        try:
            model.set_attn_implementation(self.options.attention)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{ATTENTION}: {self.model_type} cannot compute {self.options.attention} here: {error}; "
                "leave the option out"
            ) from error
        if self.without:
            assert self.type.cut is not None
            self.player = Player(model, cut_of(model, self.type.cut), self._own(self.without))
        return model  # type: ignore[no-any-return]

    def _check_attention(self) -> None:
        """Refuse an implementation whose package is absent, before anything is loaded."""
        if self.options.attention == FLASH and find_spec("flash_attn") is None:
            raise UserError(
                f"{ATTENTION}: {FLASH} needs the package flash-attn, which is not installed; install it, or "
                "leave the option out"
            )

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

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        return {
            **{role: tuple(f"{MODEL}.{prefix}" for prefix in own) for role, own in self.type.roles.items()},
            **{name: (name,) for name in self.extras},
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

    def weight_files(self, component: str) -> list[Path]:
        return self.files.deciding if component == MODEL else []

    def check_weights(self, components: Sequence[str]) -> list[str]:
        if not self.files.check_weights():
            return [MODEL]
        _ = self.files.processor
        return []

    # From conversations to tensors

    def conversation_encoder(self, options: Any) -> ConversationEncoder:
        template = self.type.prompt
        if self.options.chat_template is not None:
            if not self.options.chat_template.is_file():
                raise UserError(f"model.options.chat_template: {self.options.chat_template} is not there")
            template = read_text(self.options.chat_template, self.options.chat_template)
        return ConversationEncoder(self.files.processor, self.model_type, options, template)

    def check_packing(self) -> None:
        if self.options.attention == FLASH:
            raise UserError(
                f"data.packing: {FLASH} takes no mask that keeps the conversations of a row apart; "
                "leave packing out, or set model.options.attention to sdpa"
            )
        if self.type.packing is not None:
            raise UserError(
                f"data.packing: conversations of {self.model_type} cannot share a row: {self.type.packing}; "
                "leave packing out"
            )

    def check_length(self, tokens: int) -> None:
        language = self.model.get_submodule(self.type.roles[LANGUAGE][0])
        for name, module in language.named_modules():
            learned = isinstance(module, nn.Embedding) and "position" in name
            most = module.num_embeddings - getattr(module, "offset", 0) if learned else tokens
            if tokens > most:
                raise UserError(
                    f"data.max_length: {tokens} is more than the {most} places in a text that "
                    f"{self.model_type} has learned; lower it"
                )

    @property
    def cut(self) -> Cut | None:
        """Where its tower's output is taken."""
        return None if self.type.cut is None else cut_of(self.model, self.type.cut)

    @property
    def own_stages(self) -> list[Stage]:
        """The vision tower, where its output can be stored and played back."""
        cut = self.cut
        if cut is None or VISION not in self.type.roles:
            return []
        gives = tuple(f"{kind}{i}" for kind in KINDS for i in range(len(cut.inputs)))
        return [Stage("vision", self.roles[VISION], ("media",), gives, self._run_tower, ragged=gives)]

    def _run_tower(self, batch: Batch, draw: Draw) -> Batch:
        """What leaves the tower for the media of each row; nothing where it runs in the step."""
        if self.without is not None:
            return {}
        cut = self.cut
        assert cut is not None
        rows = [tower_outputs(row, cut, self._calls, self.device) for row in batch["media"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _calls(self, inputs: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        cut = self.cut
        assert cut is not None
        language_model = self.model.get_submodule(self.type.roles[LANGUAGE][0])
        row = {k: v.to(self.device) for k, v in collate([inputs], self._pad).items() if k != "labels"}
        with torch.no_grad(), record_outputs(self.model, cut, language_model) as calls:
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
        rows = conversations_of(batch, played=self.player is not None)
        if any(len(row) > 1 for row in rows):
            joined = [pack(row, self.model, self.type) for row in rows]
        else:
            joined = [row[0] for row in rows]
        collated = collate(joined, self._pad)
        labels = collated.pop("labels")  # stay on the host, which counts those that are learned
        inputs = {name: on_device(value, self.device) for name, value in collated.items()}
        if SEGMENT in inputs:
            segments = inputs.pop(SEGMENT)
            inputs["attention_mask"] = block_mask(segments, self.options.attention, self.dtype)
        with (
            self._playing(batch),
            hide_absent_pictures(self.model, self.type, inputs, self.dtype),
            losses_for_logits(self.model, labels, chunk=chunk, label_smoothing=label_smoothing),
        ):
            losses: Tensor = self.model(**self._cast(inputs), use_cache=False).logits
        return losses.sum(1)

    def _playing(self, batch: Batch) -> AbstractContextManager[None]:
        if self.player is None:
            return nullcontext()
        return self.player.playing(stored_outputs(batch, self.player.cut))

    # Answers

    @contextmanager
    def complete(self) -> Iterator[Any]:
        """The model with its tower, in evaluation mode, for a while."""
        with ExitStack() as stack:
            stack.enter_context(self.evaluating())
            if self.player is not None:
                tower = self.files.load_tower(self.player.prefixes, self.dtype).to(self.device)
                stack.enter_context(self.player.paused(tower))
            yield self.model

    def sample(self, requests: Sequence[Question], progress: bool = False) -> list[str]:
        encoder = self.conversation_encoder(self.asked_as)
        with self.complete() as model, torch.no_grad():
            return [self._answer(model, encoder, conversation_of(one), one.max_tokens) for one in requests]

    def answers(
        self, encoder: ConversationEncoder, conversations: Sequence[Conversation], max_tokens: int
    ) -> list[str]:
        """What the model says next in each conversation, greedily."""
        with self.complete() as model, torch.no_grad():
            return [self._answer(model, encoder, one, max_tokens) for one in conversations]

    def _answer(
        self, model: Any, encoder: ConversationEncoder, conversation: Conversation, max_tokens: int
    ) -> str:
        prompt = encoder.encode_prompt(conversation)
        inputs = {k: v.to(self.device) for k, v in prompt.items()}
        with blamed(
            self.files.where, f"generation_config.json of {self.files.base}", (TypeError, ValueError)
        ):
            own = model.generation_config.eos_token_id
            stops = {*encoder.stops, *(own if isinstance(own, list) else [] if own is None else [own])}
            output = model.generate(
                **self._cast(inputs), max_new_tokens=max_tokens, do_sample=False, pad_token_id=self._pad,
                eos_token_id=sorted(stops),
            )  # fmt: skip
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self.files.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


def conversation_of(question: Question) -> Conversation:
    parts: list[str | Media] = []
    if question.image is not None:
        probed = probe(question.image)
        parts.append(Media("image", (File(question.image),), probed.width, probed.height))
    return Conversation("question", (Message("user", (*parts, question.prompt)),), question.prompt)
