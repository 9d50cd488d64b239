"""What a model that answers in text is measured by: conversations, and its answers to them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from ..data.conversations.conversation import Conversation
from ..data.conversations.kind import Conversations
from ..data.conversations.rows import ConversationIndex
from ..errors import UserError
from ..objectives.held_out import Step
from ..objectives.token_loss import token_loss
from ..progress import say
from ..resolve import resolve_run
from . import rows
from .asked import ANSWERED, Asked
from .data import conversations, first_items, num_trained
from .features import INSTALL
from .replies import answers, exact_match, majority, rouge_l
from .subject import Subject
from .table import Measure


class AnswerEvaluation(Subject):
    """Every metric of a model that answers in text."""

    known = ANSWERED
    foreign = "is of pictures and clips, and family {family} answers in text"

    def __init__(self, asked: Asked):
        asked.check_text()
        super().__init__(asked)
        self.index = self._read()
        self.metrics = self.measurable()

    def _read(self) -> ConversationIndex:
        """The conversations, as the run shows its own."""
        path, stated = self.asked.data, self.run.data
        assert isinstance(stated, Conversations), stated.name
        if path is None:
            raise UserError(
                "--data: none is given, and nothing can be measured without; name a file of conversations"
            )
        if not path.exists():
            raise UserError(f"--data: {path} is not there; name a file of conversations")
        data = conversations(stated, path)
        self.job = resolve_run(replace(self.job.run, data=data), self.job.earlier)
        index = self.job.index()
        assert isinstance(index, ConversationIndex), type(index)
        for note in index.notes:
            say(note)
        if self.asked.samples is not None:
            index = self._first(index, self.asked.samples)
        self._tell_trained(index, stated)
        return index

    @staticmethod
    def _first(index: ConversationIndex, number: int) -> ConversationIndex:
        there = len(index.items)
        if number > there:
            raise UserError(f"--samples: {number}, and --data has {there} conversations; lower it")
        return first_items(index, number)

    def _tell_trained(self, index: ConversationIndex, stated: Conversations) -> None:
        if stated.packing:  # a row that was trained on is several of them
            say("--data: the run shares rows, so it is not known whether items were trained on")
        elif seen := num_trained(index, self.asked.folder):
            say(f"--data: {seen} of {len(index.items)} items were trained on, not held out")

    def lack(self, name: str) -> str | None:
        if name == "rouge" and find_spec("torchmetrics") is None:
            return f"needs the package torchmetrics: {INSTALL}"
        if name in ("exact_match", "rouge") and not self.questions:
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
        chat = self.family.chat(self.job.run.data)
        return answers(self.family, chat, self.questions, self.options.max_tokens)

    # Metrics

    @cached_property
    def step(self) -> Step:
        """What a training step computes its loss with, on these conversations."""
        index: Any = self.index
        cache = self.job.open_cache()
        filled = self.job.fill_cache(index, cache, self.mesh)
        if filled.encoded:
            say(str(filled))
        run, stages = self.job.run, self.job.live_stages(self.family)
        batches = self.job.batches(index, cache, self.mesh)
        return Step(self.family, run.objective, run.conditions, stages, batches, self.mesh.device)

    def loss(self) -> list[Measure]:
        run = self.job.run
        size = run.parallel.micro_batch_size or run.data.batch_size
        return [rows.of_tokens(token_loss(self.step, batch_size=size))]

    def exact_match(self) -> list[Measure]:
        found = exact_match(self.answers, self.expected)
        return [rows.of_share("exact match", found, None, majority(self.expected))]

    def rouge(self) -> list[Measure]:
        return [rows.of_share("ROUGE-L", rouge_l(self.answers, self.expected), None, None)]
