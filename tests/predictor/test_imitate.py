from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.predictor.imitate import imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.networks import Predictor


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_a_readable_importance_and_reports_the_held_out_images(loss):
    tokens = torch.randn(160, 13, 16)
    importance = tokens[:, 1:, 3] + 0.05 * torch.randn(160, 12)
    network = Predictor(16, 1, 12)
    report = imitate(network, tokens[None], importance[None], LOSSES[loss], epochs=60)
    assert (report.n_train, report.n_held_out, report.chance) == (144, 16, 0.5)
    assert report.matching_rate > 0.85
    fresh = torch.randn(50, 13, 16)
    agreement = torch.corrcoef(torch.stack([network(fresh).flatten(), fresh[:, 1:, 3].flatten()]))[0, 1]
    assert agreement > 0.85


def test_the_epoch_kept_is_the_best_on_held_out_images():
    tokens, importance = torch.randn(20, 13, 16), torch.randn(20, 12)
    network = Predictor(16, 1, 12)
    report = imitate(network, tokens[None], importance[None], epochs=40, learning_rate=1e-2)
    assert report.epoch < 40


def test_the_same_seed_gives_the_same_predictor():
    tokens, importance, weights = torch.randn(20, 13, 16), torch.randn(20, 12), []
    for _ in range(2):
        torch.manual_seed(1)
        network = Predictor(16, 1, 12)
        imitate(network, tokens[None], importance[None], epochs=3, seed=5)
        weights.append(network.score[1].weight.clone())
    assert torch.equal(*weights)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="at least 4"):
        imitate(Predictor(16, 1, 12), torch.randn(1, 3, 13, 16), torch.randn(1, 3, 12))
