"""Answers in text, held against those that are expected."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from .conversations import ConversationEvaluator
from .evaluator import Metric
from .features import INSTALL, require
from .results import Measure

APART = re.compile(r"[\W_]+")
"""What stands between words, in any script."""


class ExactMatch(Metric[ConversationEvaluator]):
    """Beside the share of the most frequent answer."""

    needs = ("answers",)

    def measure(self) -> list[Measure]:
        expected = self.evaluator.expected
        return [replace(exact_match(self.evaluator.answers, expected), chance=majority(expected))]


class Rouge(Metric[ConversationEvaluator]):
    """ROUGE-L of the answers."""

    needs = ("answers",)

    def lack(self) -> str | None:
        if find_spec("torchmetrics") is None:
            return f"needs the package torchmetrics: {INSTALL}"
        return None

    def measure(self) -> list[Measure]:
        return [rouge_l(self.evaluator.answers, self.evaluator.expected)]


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> Measure:
    """The share of answers that are the expected ones, but for case and for space around them."""
    pairs = zip(answers, expected, strict=True)
    return Measure.mean_of("exact match", [_plain(answer) == _plain(wanted) for answer, wanted in pairs])


def majority(expected: Sequence[str]) -> float:
    """The exact match of the most frequent answer, given to everything."""
    ((_, number),) = Counter(map(_plain, expected)).most_common(1)
    return number / len(expected)


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> Measure:
    """ROUGE-L (Lin 2004): the F1 of the longest common subsequence of lower-cased words, over answers."""
    require("torchmetrics", "torchmetrics", "ROUGE-L")
    from torchmetrics.functional.text.rouge import rouge_score

    found = [
        rouge_score(answer, wanted, rouge_keys="rougeL", normalizer=_words, tokenizer=str.split)
        for answer, wanted in zip(answers, expected, strict=True)
    ]
    return Measure.mean_of("ROUGE-L", [float(one["rougeL_fmeasure"]) for one in found])


def _plain(answer: str) -> str:
    return answer.strip().casefold()


def _words(text: str) -> str:
    """Words with a space between; torchmetrics' own way keeps Latin letters alone."""
    return APART.sub(" ", text.lower())
