"""What measures a model that answers in text: conversations, and its answers to them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..data.conversations.conversation import Conversation
from ..data.conversations.kind import Conversations
from ..data.conversations.rows import ConversationIndex
from ..errors import UserError
from ..progress import say
from ..resolve import resolve_run
from .data import conversations, first_items, num_trained
from .evaluator import Evaluator


class ConversationEvaluator(Evaluator):
    """A run's weights, conversations, and what the model answers in them."""

    gives = ("data", "answers")
    index: ConversationIndex

    def _read_data(self) -> None:
        """Read the conversations as the run shows its own."""
        path, stated = self.request.data, self.job.run.data
        assert isinstance(stated, Conversations), stated.name
        if path is None:
            raise UserError(
                "--data: none is given, and nothing can be measured without; name a file of conversations"
            )
        if not path.exists():
            raise UserError(f"--data: {path} is not there; name a file of conversations")
        data = conversations(stated, path)
        self.job = resolve_run(replace(self.run.run, data=data), self.run.earlier)
        index = self.job.index()
        assert isinstance(index, ConversationIndex), type(index)
        for note in index.notes:
            say(note)
        number, there = self.request.samples, len(index.items)
        if number is not None and number > there:
            raise UserError(f"--samples: {number}, and --data has {there} conversations; lower it")
        self.index = index if number is None else first_items(index, number)
        if stated.packing:  # a row that was trained on is several of them
            say("--data: the run shares rows, so it is not known whether items were trained on")
        elif seen := num_trained(self.index, self.request.folder):
            say(f"--data: {seen} of {len(self.index.items)} items were trained on, not held out")

    def lack(self, need: str) -> str | None:
        if need == "answers" and not self.questions:
            return "needs answers in text, and every last answer in --data calls a tool"
        return None

    def described(self) -> dict[str, Any]:
        generated = len(self.questions) if "answers" in vars(self) else 0
        return {
            **super().described(),
            "items": len(self.index.items),
            "samples": generated,
            "max_tokens": self.options.max_tokens,
        }

    @cached_property
    def questions(self) -> list[Conversation]:
        """The conversations that end in an answer in text."""
        return [
            one for row in self.index.items for one in row.conversations if not one.messages[-1].tool_calls
        ]

    @property
    def expected(self) -> Sequence[str]:
        return [one.messages[-1].text for one in self.questions]

    @cached_property
    def answers(self) -> list[str]:
        if others := len(self.index.items) - len(self.questions):
            say(f"--data: {others} conversations end in a call of a tool and are not answered")
        say(f"answering {len(self.questions)} questions of at most {self.options.max_tokens} tokens")
        chat = self.family.conversation_encoder(self.job.run.data)
        prompts = [before_the_answer(one) for one in self.questions]
        found: list[str] = self.family.answers(chat, prompts, self.options.max_tokens)
        return found


def before_the_answer(conversation: Conversation) -> Conversation:
    """All but the last message, which is an answer."""
    *said, last = conversation.messages
    assert last.role == "assistant", conversation.where
    return replace(conversation, messages=tuple(said))
