"""A chat template as the processor renders it, and the places of the text where its assistant speaks."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ...data.conversations.conversation import Conversation, Media, Message, Role
from ...errors import UserError

Span = tuple[int, int]
"""Characters of the rendered text, from and to."""

TAGS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Of the private use area: no data hold them, no template trims them.
SENTINEL = "\ue000answer\ue001"
THOUGHTS = re.compile(r"(<think>\s*)(\S.*?)(\s*</think>)", re.DOTALL)
WORDS: Mapping[Role, str] = {"system": "\ue002", "user": "\ue003", "assistant": "\ue004", "tool": "\ue005"}
TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
)  # fmt: skip
"""What code in a template may raise."""
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "\ue006"}}}
PROBES: Mapping[Role, tuple[Role, ...]] = {
    "system": ("system", "user", "assistant"),
    "user": ("user", "assistant"),
    "assistant": ("user", "assistant"),
    "tool": ("user", "assistant", "tool", "assistant"),
}
"""A small conversation that holds a role."""
WAY_OUT = "give a chat template with {% generation %} tags around what the assistant says"


class ChatTemplate:
    """A template's text with what it reads beside messages. `name` is for messages."""

    def __init__(self, text: str, tokenizer: Any, name: str):
        self.text, self.name = text, name
        self.has_tags = TAGS.search(text) is not None
        self._variables = dict(tokenizer.special_tokens_map)
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._end_tokens = tuple({*added, *tokenizer.all_special_tokens})
        self._forms: dict[Role, bool] = {}

    def messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """Messages as templates read them."""
        return [self._message(message) for message in conversation.messages]

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), ask: bool = False
    ) -> tuple[str, list[Span]]:
        """Give the text, and what stands between generation tags; `ask` adds the head of an answer."""
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=list(tools) or None,
                chat_template=self.text,
                return_assistant_tokens_mask=self.has_tags,
                add_generation_prompt=ask,
                **self._variables,
            )
        except TEMPLATE_ERRORS as error:
            raise UserError(f"{self.name} refuses it: {str(error) or type(error).__name__}") from error
        return texts[0], spans[0] if self.has_tags else []

    def check(self, text: str, messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> None:
        """Refuse tools, or calls of them, that the template leaves out of its text."""
        if tools and self._text_or_none(messages, ()) == text:
            raise UserError(
                f"{self.name} knows no tools, but the item states {len(tools)}; "
                "remove them, or give a chat template that writes them"
            )
        for place, message in enumerate(messages):
            if "tool_calls" not in message:
                continue
            without = {key: value for key, value in message.items() if key != "tool_calls"}
            changed = [*messages[:place], without, *messages[place + 1 :]]
            if self._text_or_none(changed, tools) == text:
                raise UserError(
                    f"{self.name} leaves out the tool calls of message {place + 1}; "
                    "state them as text, or give a chat template that writes them"
                )

    def answers(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> list[list[Span]]:
        """Say where the text of all messages holds each answer, as the model would have to write it.

        An answer begins where the model takes over and ends with its end token; what the template writes
        behind that token (a line break) is not part of it. Where the template has generation tags, they say.
        """
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        text, spans = self.render(messages, tools)
        if self.has_tags:
            return self._tagged(messages, tools, places, spans)
        return [[self._span(messages, tools, place, text)] for place in places]

    def closed(self, text: str, answers: list[list[Span]], end: str) -> tuple[str, list[list[Span]]]:
        """The text and its answers with a token at the end of the last one, for the model to learn to stop.

        Where tags leave out the token that ends a turn, it is learned too; where the text ends without one,
        as that of LLaVA-1.5 does, `end` is put there.
        """
        ends = tuple(token for token in (end, self.end_of_turn) if token)
        closed = [[*spans[:-1], self._until(ends, text, spans[-1])] if spans else [] for spans in answers]
        if not closed or not closed[-1]:
            return text, closed
        start, stop = closed[-1][-1]
        if self._ends(text[:stop]) or text[stop:].strip():
            return text, closed
        closed[-1][-1] = (start, len(text) + len(end))
        return text + end, closed

    def _until(self, ends: Sequence[str], text: str, span: Span) -> Span:
        start, stop = span
        token = next((one for one in ends if text.startswith(one, stop)), None)
        return (start, stop + len(token)) if token and not self._ends(text[start:stop]) else span

    def _ends(self, text: str) -> bool:
        return text.rstrip().endswith(self._end_tokens)

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token that it writes behind an answer, where it writes one."""
        try:
            text = self.render(_probe("assistant", self._takes_parts("assistant")))[0]
        except UserError:
            return None
        behind = text.rpartition(WORDS["assistant"])[2].lstrip()
        return next((one for one in self._end_tokens if behind.startswith(one)), None)

    def dropped_thoughts(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> int:
        """How many answers lose their thoughts, as many templates want of all but the last."""
        places = {p: found for p, m in enumerate(messages) if (found := THOUGHTS.search(_text_of(m)))}
        marked = list(messages)
        for place, found in places.items():
            said = f"{found[1]}{SENTINEL}{place}.{found[3]}{found.string[found.end() :]}"
            marked = _with_content(marked, place, said)
        text = self.render(marked, tools)[0] if places else ""
        return sum(f"{SENTINEL}{place}." not in text for place in places)

    def _tagged(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Any], places: list[int], spans: list[Span]
    ) -> list[list[Span]]:
        """Share out what stands between tags to the answers, by how many there are up to each."""
        counts = [len(self.render(messages[: place + 1], tools)[1]) for place in places[:-1]]
        bounds = [0, *counts, len(spans)]
        if any(first > last for first, last in pairwise(bounds)):
            raise UserError(
                f"{self.name} has other generation tags in a part of the conversation than in the whole "
                f"({bounds[1:]} up to each answer); put one pair around each answer"
            )
        return [spans[first:last] for first, last in pairwise(bounds)]

    def _span(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any], place: int, text: str) -> Span:
        """From the differences of prefixes; where the template renders past turns in another way, from two
        renderings of the whole that differ in this answer."""
        other = _with_content(messages, place, SENTINEL)
        whole = self.render(other, tools)[0]
        start = self._start(messages, tools, place, text, whole)
        until = self.render(messages[: place + 1], tools)[0]
        if text.startswith(until) and len(until) >= start:
            end = len(until)
        elif "tool_calls" in messages[place] or SENTINEL not in whole:
            raise self._unplaced(place)
        else:
            end = self._end(other, tools, place, text, whole)
        if end <= start:
            raise self._unplaced(place)
        spoken = text[start:end].rstrip()
        return start, start + len(spoken) if spoken.endswith(self._end_tokens) else end

    def _start(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Any], place: int, text: str, whole: str
    ) -> int:
        until_answer = self.render(messages[:place], tools, ask=True)[0]
        before = self.render(messages[:place], tools)[0]
        if until_answer == before and SENTINEL in whole and text.startswith(before):
            head = whole[len(before) : whole.index(SENTINEL)]
            if head.strip():
                raise UserError(
                    f"{self.name} writes {head!r} before an answer but has no add_generation_prompt, so "
                    f"where the assistant takes over is not known; {WAY_OUT}"
                )
        if text.startswith(until_answer):
            return len(until_answer)
        # The head of a new answer holds more than past answers show (an opened `<think>`).
        start = num_shared(until_answer, whole)
        if start <= len(before) or not text.startswith(until_answer[:start]):
            raise self._unplaced(place)
        return start

    def _end(
        self, other: Sequence[dict[str, Any]], tools: Sequence[Any], place: int, text: str, whole: str
    ) -> int:
        """Where the answer's text ends, and the end token if the whole has it there."""
        end = len(text) - num_shared(text[::-1], whole[::-1])
        alone = self.render(other[: place + 1], tools)[0]
        behind = alone[alone.rindex(SENTINEL) + len(SENTINEL) :] if SENTINEL in alone else ""
        for closing in (behind, behind.rstrip()):
            if text.startswith(closing, end):
                return end + len(closing)
        return end

    def _unplaced(self, place: int) -> UserError:
        return UserError(
            f"{self.name} renders message {place + 1} in another way alone than in the whole conversation, "
            f"so what is to be learned is not known; {WAY_OUT}"
        )

    def _message(self, message: Message) -> dict[str, Any]:
        rendered: dict[str, Any] = {"role": message.role}
        if any(isinstance(part, Media) for part in message.parts) or self._takes_parts(message.role):
            rendered["content"] = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind}
                for part in message.parts
            ]
        else:
            rendered["content"] = message.text
        if message.tool_calls:
            rendered["tool_calls"] = [
                {"type": "function", "function": dict(call)} for call in message.tool_calls
            ]
        return rendered

    def _takes_parts(self, role: Role) -> bool:
        if role not in self._forms:
            self._forms[role] = self._probe_parts(role)
        return self._forms[role]

    def _probe_parts(self, role: Role) -> bool:
        """Whether the template reads a message of a role as a list of parts; else as a string."""
        if role not in ("user", "assistant") and not self._takes_parts("user"):
            forms: tuple[bool, ...] = (False, True)
        else:
            forms = (True, False)
        refusals = []
        for parts in forms:
            try:
                text = self.render(_probe(role, parts))[0]
            except UserError as error:
                refusals.append(str(error))
                continue
            if WORDS[role] in text and not re.search(r"""['"]type['"]: ?['"]text""", text):
                return parts
        if refusals:
            raise UserError(f"no {role} message can be shown: {refusals[0]}; {_without(role)}")
        raise UserError(f"{self.name} leaves out messages of the {role}; {_without(role)}")

    def _text_or_none(self, messages: Sequence[Any], tools: Sequence[Any]) -> str | None:
        try:
            return self.render(messages, tools)[0]
        except UserError:
            return None


def _probe(role: Role, parts: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for each in PROBES[role]:
        word = WORDS[each]
        messages.append({"role": each, "content": [{"type": "text", "text": word}] if parts else word})
    if role == "tool":
        messages[1]["tool_calls"] = [CALL]
    return messages


def _text_of(message: Mapping[str, Any]) -> str:
    content = message["content"] if message["role"] == "assistant" else ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def num_shared(first: str, second: str) -> int:
    """Characters that two texts begin with alike."""
    different = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))


def _with_content(messages: Sequence[dict[str, Any]], place: int, text: str) -> list[dict[str, Any]]:
    """Put another text in the place of a message's content."""
    as_parts = isinstance(messages[place]["content"], list)
    content = [{"type": "text", "text": text}] if as_parts else text
    return [*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :]]


def _without(role: Role) -> str:
    if role == "system":
        return "move its text to the first user message, or give a chat template that takes it"
    return f"give a chat template that takes messages of the {role}"
