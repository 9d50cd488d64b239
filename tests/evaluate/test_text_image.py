import pytest
import torch

from omnitune.errors import UserError
from omnitune.evaluate import TextImageScorer, auc, recall
from omnitune.evaluate.text_image import ALPHAS


@pytest.fixture(scope="module")
def fitted(network, encoder, silhouettes):
    train, held_out = silhouettes
    evaluated = held_out.captions
    pictures, captions = [*train.pictures, *held_out.pictures], [*train.captions, *held_out.captions]
    return TextImageScorer.fit(pictures, captions, network, encoder, evaluated)


def test_scorer_tells_true_captions_that_it_never_saw(fitted, network, silhouettes):
    """Fitted on 96 silhouettes; by chance the share would be 0.5 and its standard error 0.05."""
    held_out = silhouettes[1]
    scores = fitted.scores(network.features(held_out.pictures), held_out.captions)
    found = auc(scores, held_out.captions)
    assert found.count == len(held_out.captions)
    assert found.value > 0.62
    assert found.value - 0.5 > 2.5 * found.spread


def test_scorer_is_not_fitted_on_evaluated_captions(fitted, network, encoder, silhouettes):
    train, held_out = silhouettes
    assert fitted.num_dropped == len(held_out.captions)
    assert fitted.num_fitted == len(train.captions)
    alone = TextImageScorer.fit(train.pictures, train.captions, network, encoder)
    assert torch.equal(alone.weight, fitted.weight)
    spelt = [f" {caption.upper()} " for caption in train.captions]
    with pytest.raises(UserError, match=r"--fit: 0 of \d+ captions are not evaluated ones, and 8 are needed"):
        TextImageScorer.fit(train.pictures, train.captions, network, encoder, spelt)


def test_scorer_solves_ridge_regression(fitted, network, encoder, silhouettes):
    train = silhouettes[0]
    x, y = network.features(train.pictures).double(), encoder.embed(train.captions).double()
    x, y = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-6), y - y.mean(0)
    gradient = x.T @ (x @ fitted.weight.double() - y) + fitted.alpha * fitted.weight.double()
    assert gradient.abs().max() < 1e-3 * (x.T @ y).abs().max()


def test_alpha_has_the_least_leave_one_out_error_on_what_is_fitted(fitted, network, encoder, silhouettes):
    train = silhouettes[0]
    x, y = network.features(train.pictures).double(), encoder.embed(train.captions).double()
    x, y = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-6), y - y.mean(0)
    errors = {}
    for alpha in ALPHAS.tolist():
        hat = x @ torch.linalg.solve(x.T @ x + alpha * torch.eye(x.shape[1]), x.T)
        errors[alpha] = float((((y - hat @ y) / (1 - hat.diagonal())[:, None]) ** 2).mean())
    assert fitted.alpha == pytest.approx(min(errors, key=errors.__getitem__))


def test_sentences_of_one_meaning_lie_together(encoder):
    cat, kitten, bond = encoder.embed(["a cat", "a kitten", "government bonds fell in late trading"])
    assert cat @ kitten > 0.4 > 0.2 > cat @ bond
    assert torch.allclose(encoder.embed(["a cat"])[0], cat, atol=1e-5)  # padding is not averaged in


def test_a_constant_predictor_is_at_chance():
    captions = [f"caption {i}" for i in range(40)]
    scores = torch.ones(40, 40)
    assert auc(scores, captions).value == 0.5
    assert recall(scores, captions, 19).value == 0
    assert recall(scores, captions, 20).value == 1


def test_auc_and_recall_count_pairs_of_different_captions():
    captions = ["a", "b", "c", "A "]  # the first and the last say the same
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.9],  # above both others
            [0.5, 0.5, 0.1, 0.5],  # ties with "a" twice, above "c"
            [0.3, 0.2, 0.1, 0.3],  # below all
            [0.9, 0.1, 0.2, 0.9],
        ]
    )
    assert auc(scores, captions).value == pytest.approx((1 + (0.5 + 1 + 0.5) / 3 + 0 + 1) / 4)
    assert recall(scores, captions, 1).value == pytest.approx((1 + 1 + 0 + 1) / 4)  # half a place behind "a"
    assert recall(scores, captions, 3).value == 1
    with pytest.raises(UserError, match="all captions are the same"):
        auc(scores[:1, :1], ["a"])
