"""Numbers for what a model generates, made offline; `omnitune evaluate` makes them for a run.

Every function takes pictures (H, W, 3) or clips (T, H, W, 3) in uint8, wherever those come from.
"""

from ..objectives.held_out import HeldOutLoss, Level, Step, held_out_loss
from ..objectives.token_loss import TokenLoss, token_loss
from .answering import AnswerEvaluation
from .asked import Asked
from .command import Evaluation, evaluation
from .distances import Distance, Lpips, Motion, kid, kid_of_features, kid_of_pairs, load_lpips, motion, psnr
from .features import Clip, FeatureNetwork, is_installed, load_features
from .replies import answers, exact_match, majority, rouge_l
from .table import Measure, table
from .text_image import ClipScorer, Scorer, Share, TextImageScorer, auc, clip_score, minilm, recall

__all__ = [
    "AnswerEvaluation",
    "Asked",
    "Clip",
    "ClipScorer",
    "Distance",
    "Evaluation",
    "FeatureNetwork",
    "HeldOutLoss",
    "Level",
    "Lpips",
    "Measure",
    "Motion",
    "Scorer",
    "Share",
    "Step",
    "TextImageScorer",
    "TokenLoss",
    "answers",
    "auc",
    "clip_score",
    "evaluation",
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
    "token_loss",
]
