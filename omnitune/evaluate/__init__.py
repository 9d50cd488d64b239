"""Numbers for what a model generates, made offline; `omnitune evaluate` makes them for a run.

Every function takes pictures (H, W, 3) or clips (T, H, W, 3) in uint8, wherever those come from.
"""

from ..requests import EvaluateRequest
from .conversations import ConversationEvaluator, before_the_answer
from .evaluator import Evaluator, Metric
from .features import Clip, FeatureNetwork, is_installed, load_features
from .kid import kid, kid_of_features, kid_of_pairs
from .media import MediaEvaluator
from .motion import motion
from .reconstruction import load_lpips, psnr
from .registry import METRICS, evaluator
from .results import EvaluationResult, Measure, table
from .text_image import TextImageScorer, auc, clip_score, minilm, recall
from .text_metrics import exact_match, majority, rouge_l

__all__ = [
    "METRICS", "Clip", "ConversationEvaluator", "EvaluateRequest", "EvaluationResult", "Evaluator",
    "FeatureNetwork", "Measure", "MediaEvaluator", "Metric", "TextImageScorer", "auc", "before_the_answer",
    "clip_score", "evaluator", "exact_match", "is_installed", "kid", "kid_of_features", "kid_of_pairs",
    "load_features", "load_lpips", "majority", "minilm", "motion", "psnr", "recall", "rouge_l", "table",
]  # fmt: skip
