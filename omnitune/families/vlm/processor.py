"""A model's processor as conversations go through it, with what some types do in a way of their own."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...data.conversations.conversation import Conversation
from ...data.conversations.options import ChatOptions
from ...errors import UserError
from ..files import DAMAGE, panics_raised
from .literal import LiteralTokens
from .media import DecodedMedia, Size, check_boxes, processed_size, rescale_boxes
from .template import ChatTemplate, Span
from .types import TYPES

ONE_PICTURE = ("blip-2", "instructblip")
PROMPT_SEEN_WHOLE = ("paligemma", "instructblip")
"""Types that read the prompt in both directions, or by a second encoder, before they answer."""
WITHOUT_REPLACEMENTS = ("paligemma", "blip-2", "instructblip", "mllama")
"""Types whose processor puts nothing in the place of placeholders, or does not say what."""

VISION_TOKENS = {
    "<|vision_start|>", "<|vision_end|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
    "<|end_of_video|>",
}  # fmt: skip
"""Tokens around media that no attribute of their processors names."""
OF_PICTURES = re.compile(r"<\W*(?:row_\d|tile_|global|patch|image|video|img|vision)", re.IGNORECASE)
"""Special tokens that processors write for parts of pictures."""


class RefusedError(UserError):
    """What a processor says of something that it does not take."""


@dataclass(frozen=True)
class Inputs:
    """What the processor is called with, and where that comes from."""

    template: ChatTemplate
    messages: list[dict[str, Any]]
    tools: Sequence[Any]
    text: str
    prompt: str
    """Up to the last answer, for types that read it apart."""
    suffix: str | None
    """The last answer, for a type whose processor takes it apart from the text."""
    answers: list[list[Span]]
    """As the template has them."""
    learned: list[list[Span]]
    """With a token at the end of the last."""
    ended: bool
    """Whether that token was put there."""
    dropped_thoughts: int
    """Answers whose thoughts the template leaves out."""
    pictures: list[Any]
    clips: list[Any]
    settings: dict[str, Any]
    seconds_per_grid: list[float]

    def with_media(self) -> list[dict[str, Any]]:
        """The messages with their pictures and clips inside."""
        media = {"image": iter(self.pictures), "video": iter(self.clips)}
        return [
            {**message, "content": [_with_media(part, media) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in self.messages
        ]


class ConversationProcessor:
    """The processor of one model, with its chat template."""

    def __init__(self, processor: Any, model_type: str, options: ChatOptions, template: str | None):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.model_type, self.options = model_type, options
        name = f"the chat template of {model_type}"
        self._template = ChatTemplate(_template_text(processor, model_type, template), self.tokenizer, name)
        self._template_for_clips = self._template
        if model_type == "smolvlm" and template is None:  # its processor takes this one for clips
            from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

            self._template_for_clips = ChatTemplate(DEFAULT_CHAT_TEMPLATE, self.tokenizer, name)
        check_boxes(options.boxes, processor, model_type)
        if options.train_on_prompt and model_type in PROMPT_SEEN_WHOLE:
            raise UserError(
                f"train_on_prompt: {model_type} sees its prompt whole, so there is nothing to learn in it; "
                "remove it"
            )

    @property
    def templates(self) -> tuple[str, str]:
        """For items without a clip, and with one."""
        return self._template.text, self._template_for_clips.text

    @cached_property
    def media_ids(self) -> Tensor:
        """Tokens that stand for media, or open and close them."""
        return torch.tensor(self.tokenizer.convert_tokens_to_ids(self._media_tokens))

    def size(self, each: DecodedMedia, scale: float) -> Size:
        """The size in which the processor is given a picture or a clip."""
        kind = each.media.kind
        limits = self.options.image_pixels if kind == "image" else self.options.video_pixels
        return each.fitted(limits, scale)

    def check(self, conversation: Conversation) -> None:
        """Refuse what the type does not take."""
        count = len(conversation.media)
        known = TYPES.get(self.model_type)
        if not count and known is not None and not known.text_only:
            raise UserError(f"shows no picture, and {self.model_type} takes no text alone; remove the item")
        if count > 1 and self.model_type in ONE_PICTURE:
            raise UserError(f"shows {count} pictures, and {self.model_type} takes one; split the item")
        if next(conversation.of("video"), None) and not hasattr(self.processor, "video_processor"):
            raise UserError(f"shows a clip, and {self.model_type} takes pictures alone; remove the item")

    @cached_property
    def literal(self) -> LiteralTokens:
        """Tokens that texts may spell: of media, of the templates, of the beginning and end of texts.

        Further ones of the tokenizer (boxes, places, calls) are meant where a text spells them.
        """
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        named = {str(getattr(self.tokenizer, name)) for name in names if getattr(self.tokenizer, name)}
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        written = {token for token in special if any(token in text for text in self.templates)}
        return LiteralTokens(self.tokenizer, sorted({*self._media_tokens, *named, *written}))

    @cached_property
    def _media_tokens(self) -> list[str]:
        """Strings that stand for media, or open and close them."""
        names = (
            "image_token", "video_token", "audio_token", "context_image_token", "boi_token", "eoi_token",
            "vision_start_token", "vision_end_token", "vision_bos_token", "vision_eos_token",
            "start_image_token", "end_image_token", "start_of_img_token", "end_of_img_token",
            "img_patch_token", "image_break_token", "image_end_token", "fake_image_token",
            "global_image_token", "global_image_tag",
        )  # fmt: skip
        owners = (self.processor, self.tokenizer)
        tokens = {str(getattr(owner, name, "")) for name in names for owner in owners}
        parts = {token for token in self.tokenizer.all_special_tokens if OF_PICTURES.search(token)}
        return sorted((tokens | VISION_TOKENS | parts) & {*self.tokenizer.get_vocab()})

    def inputs(
        self, conversation: Conversation, media: Sequence[DecodedMedia], scale: float, ask: bool = False
    ) -> Inputs:
        """What to call the processor with, media shrunk to a share of their area; `ask` for an answer."""
        sizes = [self.size(each, scale) for each in media]
        pairs = list(zip(media, sizes, strict=True))
        pictures = [each.picture(size) for each, size in pairs if each.media.kind == "image"]
        clips = [(each, size) for each, size in pairs if each.media.kind == "video"]
        if self.options.boxes is not None:
            conversation = self._with_moved_boxes(conversation, media, pictures)
        settings: dict[str, Any] = {}
        if clips:
            metadata = [each.metadata(size) for each, size in clips]
            settings = {"do_sample_frames": False, "video_metadata": metadata}
        template = self._template_for_clips if clips else self._template
        conversation = self.literal.hide_in(conversation)
        messages, tools = template.messages(conversation), conversation.tools
        text = template.render(messages, tools, ask)[0]
        template.check(text, messages, tools)
        prompt = text
        if not ask and self.model_type in PROMPT_SEEN_WHOLE:
            prompt = template.render(messages[:-1], tools, ask=True)[0]
        suffix, answers = None, list[list[Span]]()
        if not ask and self.model_type != "paligemma":
            answers = template.answers(messages, tools)
        written, (text, learned) = text, template.closed(text, answers, self.tokenizer.eos_token or "")
        if self.model_type == "paligemma":
            # Its processor ends the prompt with a line break, and the answer with the end token.
            suffix = None if ask else text.removeprefix(prompt).removesuffix(self.tokenizer.eos_token)
            text = prompt.removesuffix("\n")
        return Inputs(
            template,
            messages,
            tools,
            text,
            prompt,
            suffix,
            answers,
            learned,
            text != written and suffix is None and not ask,
            0 if ask else template.dropped_thoughts(messages, tools),
            pictures,
            [each.clip(size) for each, size in clips],
            settings,
            [self._seconds(each) for each, _ in clips],
        )

    def _seconds(self, clip: DecodedMedia) -> float:
        """Seconds that the model sees as one moment of a clip."""
        patch = getattr(self.processor.video_processor, "temporal_patch_size", 1)
        return float(patch * clip.frames.seconds_each)

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer, by the tokenizer and by the templates."""
        named = (self.tokenizer.eos_token, self._template.end_of_turn, self._template_for_clips.end_of_turn)
        tokens = sorted({token for token in named if token})
        return [int(i) for i in self.tokenizer.convert_tokens_to_ids(tokens)]

    def _with_moved_boxes(
        self, conversation: Conversation, media: Sequence[DecodedMedia], pictures: Sequence[Any]
    ) -> Conversation:
        assert self.options.boxes is not None
        files = [each.size for each in media if each.media.kind == "image"]
        processed = files
        if self.options.boxes.absolute:
            processed = [processed_size(self.processor, picture) for picture in pictures]
        messages = rescale_boxes(conversation, self.options.boxes, list(zip(files, processed, strict=True)))
        return replace(conversation, messages=tuple(messages))

    def call(self, inputs: Inputs) -> Any:
        """What the processor gives for one item, as tensors."""
        settings = {**inputs.settings, **self.text_settings(inputs.text), "return_tensors": "pt"}
        if self.model_type not in WITHOUT_REPLACEMENTS:
            settings["return_text_replacement_offsets"] = True
        if inputs.suffix is not None:
            settings["suffix"] = inputs.suffix
        pictures: list[Any] | None = inputs.pictures or None
        if pictures is not None and self.model_type not in ONE_PICTURE:
            pictures = [pictures]
        if inputs.clips:
            settings["videos"] = [inputs.clips]
        try:
            with panics_raised():
                outputs = self.processor(text=[inputs.text], images=pictures, **settings)
        except DAMAGE as error:
            raise RefusedError(f"the processor of {self.model_type} refuses it: {error}") from error
        if "video_second_per_grid" in outputs:
            outputs["video_second_per_grid"] = torch.tensor(inputs.seconds_per_grid)
        if "qformer_input_ids" in outputs:
            outputs |= self._for_qformer(self.literal.show(inputs.prompt))
        return outputs

    def text_settings(self, text: str) -> dict[str, Any]:
        """As `apply_chat_template` has it: no token is put before a text that begins with it."""
        bos = self.tokenizer.bos_token
        return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}

    def _for_qformer(self, prompt: str) -> dict[str, Tensor]:
        """The Q-Former reads what is asked alone, as when the model is to answer it."""
        outputs = self.processor.qformer_tokenizer(prompt, return_tensors="pt")
        return {f"qformer_{name}": outputs[name] for name in ("input_ids", "attention_mask")}

    def compare(self, inputs: Inputs, ids: Tensor, answers: Tensor) -> None:
        """Hold what is found of the first items against the processor's own mask."""
        if self.model_type in WITHOUT_REPLACEMENTS:
            return
        given = self.processor.apply_chat_template(
            inputs.with_media(),
            chat_template=inputs.template.text,
            tools=inputs.tools or None,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs=dict(inputs.settings),
        )
        own_ids, own_mask = given["input_ids"][0], given["assistant_masks"][0]
        if list(own_ids) != ids.tolist() or list(own_mask) != answers.long().tolist():
            raise UserError(
                f"{inputs.template.name} has generation tags by which the processor marks {sum(own_mask)} of "
                f"{len(own_ids)} tokens, and here they are {int(answers.sum())} of {len(ids)}; remove the "
                "tags, then answers are found by what the template writes around them"
            )


def _with_media(part: dict[str, Any], media: Mapping[str, Iterator[Any]]) -> dict[str, Any]:
    kind = part["type"]
    return {**part, kind: next(media[kind])} if kind in media else part


def _template_text(processor: Any, model_type: str, given: str | None) -> str:
    text = given or processor.chat_template or processor.tokenizer.chat_template
    if isinstance(text, dict):
        text = text.get("default")
    if not text:
        way = "give one in model.options.chat_template"
        raise UserError(f"the processor of {model_type} has no chat template; {way}")
    return str(text)
