"""The metrics by name, and what measures a run of each kind."""

from collections.abc import Mapping
from typing import Any

from ..requests import EvaluateRequest
from ..resolve import resolve_run
from ..run_folder import read_averaged
from .conversations import ConversationEvaluator
from .data import deterministic
from .evaluator import Evaluator, Metric
from .kid import Kid
from .loss import Loss
from .media import MediaEvaluator
from .motion import FrameMotion
from .reconstruction import Psnr
from .text_image import TextImage
from .text_metrics import ExactMatch, Rouge

METRICS: Mapping[str, type[Metric[Any]]] = {
    "loss": Loss,
    "psnr": Psnr,
    "kid": Kid,
    "text_image": TextImage,
    "motion": FrameMotion,
    "exact_match": ExactMatch,
    "rouge": Rouge,
}
"""By the names that `--metrics` takes; all that apply are measured, in this order."""
EVALUATORS: Mapping[str, type[Evaluator]] = {
    "captions": MediaEvaluator,
    "conversations": ConversationEvaluator,
}
"""By what a family is trained on."""


def evaluator(request: EvaluateRequest) -> Evaluator:
    """Resolve a run and its data, and tell which metrics are left out; nothing is generated yet."""
    run = resolve_run(deterministic(read_averaged(request.folder, request.raw)))
    return EVALUATORS[run.family_class.trained_on](request, run, METRICS)
