"""From a conversation to tokens and labels, through the model's own processor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

from ...batch import Batch
from ...data.conversations.conversation import Conversation
from ...data.conversations.options import ChatOptions
from ...data.conversations.tokens import ENDED, THOUGHTS, Encoded, LeftOut
from ...errors import UserError
from .collate import PADS
from .labels import TokenPlaces, expand_placeholders, learned_answers, learned_tokens
from .literal import spread
from .media import DecodedMedia, decode
from .processor import PROMPT_SEEN_WHOLE, ConversationProcessor, Inputs, RefusedError

VERSION = 2
"""To be raised when the same item comes to give something else."""
NUM_CHECKED = 4
"""Items whose labels are compared with the processor's own mask, where a template has generation tags."""
NUM_TRIES = 8
"""Sizes that are tried to make an item fit."""
NOT_KEPT = ("attention_mask", "labels", "input_ids", "text_replacement_offsets")
"""What the processor may give that is found in another way, or not at all."""


class ConversationEncoder:
    """Encodes conversations for one model. `template` takes the place of the processor's own."""

    def __init__(self, processor: Any, model_type: str, options: ChatOptions, template: str | None = None):
        self.options = options
        self._through = ConversationProcessor(processor, model_type, options, template)
        self._left_to_check = NUM_CHECKED

    def encode(self, conversation: Conversation) -> Encoded | LeftOut:
        """Encode one item, whose media alone are in memory."""
        with self._decoded(conversation) as media:
            encoded = self._encoded(conversation, media, 1.0)
            if len(encoded) <= self.options.max_length:
                return encoded
            if media and self.options.too_long == "shrink":
                return self._shrunk(conversation, media, len(encoded))
            return LeftOut(f"{conversation.where}: {self._too_long(len(encoded))}")

    def encode_prompt(self, conversation: Conversation) -> Batch:
        """Encode a batch of one that ends where the model is to answer."""
        with self._decoded(conversation) as media:
            inputs = self._through.inputs(conversation, media, 1.0, ask=True)
            outputs = self._through.call(inputs)
            if found := self._through.literal.sources(outputs["input_ids"][0], inputs.text):
                spread(outputs, *found)
            unknown = ("text_replacement_offsets", "labels")
            return {name: value for name, value in outputs.items() if name not in unknown}

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        return self._through.stops

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that decides what an item becomes."""
        digest = blake2b(digest_size=16)
        stated = [VERSION, transformers.__version__, self._through.model_type]
        stated += [f"{one.name}: {getattr(self.options, one.name)!r}" for one in fields(ChatOptions)]
        for part in (*stated, *self._through.templates):
            digest.update(f"{part}\0".encode())
        with TemporaryDirectory() as folder:
            tokenizer = self._through.processor.tokenizer
            if tokenizer.is_fast:  # it would be saved with how it padded and cut last
                tokenizer.backend_tokenizer.no_padding()
                tokenizer.backend_tokenizer.no_truncation()
            self._through.processor.save_pretrained(folder)
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    @contextmanager
    def _decoded(self, conversation: Conversation) -> Iterator[list[DecodedMedia]]:
        """Decode the media of an item that the model takes; errors name the item."""
        try:
            self._through.check(conversation)
            yield [decode(each, self.options, self._through.processor) for each in conversation.media]
        except UserError as error:
            raise UserError(f"{conversation.where}: {error}") from error

    # Making it fit

    def _too_long(self, length: int) -> str:
        return f"{length} tokens, and max_length is {self.options.max_length}"

    def _shrunk(
        self, conversation: Conversation, media: Sequence[DecodedMedia], length: int
    ) -> Encoded | LeftOut:
        """Search the largest pictures that fit, all shrunk alike."""
        area = max(each.size[0] * each.size[1] for each in media)
        low, high = 1 / area, 1.0
        best, least = self._encoded_or_why(conversation, media, low)
        if best is not None and len(best) > self.options.max_length:
            fewest = f"{len(best)} with the smallest pictures" if len(best) < length else "at any size"
            return LeftOut(f"{conversation.where}: {self._too_long(length)}; {fewest}")
        for _ in range(NUM_TRIES):
            middle = (low * high) ** 0.5
            smaller, why = self._encoded_or_why(conversation, media, middle)
            if smaller is not None and len(smaller) > self.options.max_length:
                high = middle
            else:  # what the processor refuses is too small for it
                low, best, least = middle, smaller or best, why or least
        return best or LeftOut(f"{conversation.where}: {self._too_long(length)}; made smaller, {least}")

    def _encoded_or_why(
        self, conversation: Conversation, media: Sequence[DecodedMedia], scale: float
    ) -> tuple[Encoded | None, str]:
        """Encode at a scale, or say why the processor does not take pictures so small."""
        try:
            return self._encoded(conversation, media, scale), ""
        except RefusedError as error:
            return None, str(error)

    def _encoded(self, conversation: Conversation, media: Sequence[DecodedMedia], scale: float) -> Encoded:
        inputs = self._through.inputs(conversation, media, scale)
        outputs = self._through.call(inputs)
        mask = self._mask(conversation, inputs, outputs)
        text = inputs.text + (inputs.suffix or "")
        if found := self._through.literal.sources(outputs["input_ids"][0], text):
            spread(outputs, *found)
            mask = mask[found[1]]
        labels = torch.where(mask, outputs["input_ids"][0], -100)
        tokens = {"input_ids": outputs["input_ids"][0], "labels": labels}
        pixels = {}
        for name, value in outputs.items():
            if name.startswith("pixel"):
                pixels[name] = value
            elif name not in NOT_KEPT:
                tokens[name] = value[0] if name in PADS else value
        shrunk = {}
        for each in media if scale < 1 else ():
            shrunk[each.name] = self._through.size(each, 1.0), self._through.size(each, scale)
        remarks = {ENDED: int(inputs.ended), THOUGHTS: inputs.dropped_thoughts}
        return Encoded(tokens, pixels, shrunk, remarks)

    # What is learned

    def _mask(self, conversation: Conversation, inputs: Inputs, outputs: Any) -> Tensor:
        """(L,): True for what is learned."""
        ids = outputs["input_ids"][0]
        wanted = learned_answers(conversation.messages, self.options)
        model_type = self._through.model_type
        if model_type in PROMPT_SEEN_WHOLE and any(wanted[:-1]):
            raise UserError(
                f"has {len(wanted)} answers to learn, and {model_type} sees the earlier ones whole when it "
                "answers; set mask_history to learn the last one alone, or split the item"
            )
        if inputs.suffix is not None:
            mask: Tensor = (outputs["token_type_ids"][0] == 1) & wanted[-1]
        else:
            mask = self._learned(inputs, outputs, ids, wanted)
        if not mask.any():
            raise UserError(
                "holds nothing to learn: no text of an answer is left after `train`, mask_history and the "
                "chat template; remove the item or let one answer train"
            )
        return mask

    def _learned(self, inputs: Inputs, outputs: Any, ids: Tensor, wanted: Sequence[bool]) -> Tensor:
        given = outputs.get("text_replacement_offsets")
        replaced = given[0] if isinstance(given, list) and given else []
        whole = expand_placeholders(inputs.text, [*inputs.learned, *inputs.answers], replaced)
        settings = self._through.text_settings(inputs.text)
        places = TokenPlaces(self._through.tokenizer, whole.text, ids, settings, self._through.model_type)
        both = [places.tokens(spans) for spans in whole.answers]
        answers, by_template = both[: len(inputs.learned)], both[len(inputs.learned) :]
        if inputs.template.has_tags and self._left_to_check:
            self._left_to_check -= 1
            length = len(ids) - inputs.ended
            self._through.compare(inputs, ids[:length], torch.stack(by_template).any(0)[:length])
        media = places.tokens(whole.media) | torch.isin(ids, self._through.media_ids)
        return learned_tokens(answers, wanted, media, self.options.train_on_prompt)
