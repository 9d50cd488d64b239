"""Numbers for what a model generates, made offline; `omnitune evaluate` makes them for a run.

Every function takes pictures (H, W, 3) or clips (T, H, W, 3) in uint8, wherever those come from.
"""

from collections.abc import Mapping
from typing import Any

from ..objectives.held_out import HeldOutLoss, LevelLoss, Step, held_out_loss
from .conversations import ConversationEvaluator, answers
from .evaluator import Evaluator, Metric, Subject
from .features import Clip, FeatureNetwork, is_installed, load_features
from .kid import Distance, Kid, kid, kid_of_features, kid_of_pairs
from .loss import Loss
from .media import MediaEvaluator
from .motion import FrameMotion, Motion, motion
from .reconstruction import Lpips, Psnr, load_lpips, psnr
from .request import EvaluateRequest
from .results import EvaluationResult, Measure, Share, table
from .text_image import ClipScorer, Scorer, TextImage, TextImageScorer, auc, clip_score, minilm, recall
from .text_metrics import ExactMatch, Rouge, exact_match, majority, rouge_l

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

__all__ = [
    "METRICS",
    "Clip",
    "ClipScorer",
    "ConversationEvaluator",
    "Distance",
    "EvaluateRequest",
    "EvaluationResult",
    "Evaluator",
    "FeatureNetwork",
    "HeldOutLoss",
    "LevelLoss",
    "Lpips",
    "Measure",
    "MediaEvaluator",
    "Metric",
    "Motion",
    "Scorer",
    "Share",
    "Step",
    "Subject",
    "TextImageScorer",
    "answers",
    "auc",
    "clip_score",
    "exact_match",
    "held_out_loss",
    "is_installed",
    "kid",
    "kid_of_features",
    "kid_of_pairs",
    "load_features",
    "load_lpips",
    "majority",
    "minilm",
    "motion",
    "psnr",
    "recall",
    "rouge_l",
    "table",
]
