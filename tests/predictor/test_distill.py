from __future__ import annotations

import pytest
import torch
from torch import nn

from patchranking.errors import UserError
from patchranking.predictor.distill import distill, soft_gates
from patchranking.predictor.losses import standardise
from patchranking.predictor.networks import Predictor
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.ranking.gates import gated_features
from patchranking.ranking.objectives import feature_damage


def gated(tower, tokens, scores, count, width, block=3):
    patches, log_gates = soft_gates(scores, count, width)
    return gated_features(tower, gather_tokens(tokens, patches, tower.num_prefix_tokens), log_gates, block)


def test_gates_are_half_open_at_the_threshold_and_follow_the_scores():
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.9]])
    patches, log_gates = soft_gates(scores, 2, 0.2)
    gates = torch.zeros(4).scatter(0, patches[0], log_gates[0].exp())
    assert gates.argsort(descending=True).tolist() == [0, 2, 3, 1]
    assert gates[2] + gates[3] == pytest.approx(1)
    assert gates[2] == pytest.approx(torch.sigmoid(torch.tensor(0.125 / 0.2)))


def test_scores_that_crowd_open_the_gates_no_wider():
    scores = torch.randn(2, 16)
    (_, wide), (_, crowded) = soft_gates(scores, 6, 0.05), soft_gates(scores.sign() + 1e-3 * scores, 6, 0.05)
    torch.testing.assert_close(wide.sort().values, crowded.sort().values)


def test_the_gradient_goes_through_to_the_standardised_scores():
    scores = torch.randn(2, 16, dtype=torch.double, requires_grad=True)
    patches, log_gates = soft_gates(scores, 6, 0.1)
    weight = torch.randn_like(log_gates)
    (found,) = torch.autograd.grad((log_gates * weight).sum(), scores)
    slope = weight * (1 - log_gates.detach().exp()) / 0.1 * 12**-0.5
    (expected,) = torch.autograd.grad((standardise(scores).gather(1, patches) * slope).sum(), scores)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_gates_that_are_all_but_closed_are_left_out_without_harm(case):
    tower = case.tower
    tokens, scores = tower.embed(case.pixels, 3), torch.randn(3, tower.num_patches)
    patches, _ = soft_gates(scores, 4, 0.03)
    assert patches.shape[1] < tower.num_patches
    place = scores.argsort(dim=1, descending=True).argsort(dim=1)
    everything = nn.functional.logsigmoid((3.5 - place) / tower.num_patches / 0.03)
    expected = gated_features(tower, tokens, everything, 3)
    torch.testing.assert_close(gated(tower, tokens, scores, 4, 0.03), expected, rtol=0, atol=0.05)


@torch.no_grad()
def test_sharp_gates_equal_hard_pruning(case):
    tower = case.tower
    tokens = tower.embed(case.pixels, 3)
    scores = torch.stack([torch.randperm(tower.num_patches).float() for _ in range(3)])
    hard = tower.pool(tower.run(gather_tokens(tokens, top_patches(scores, 5), tower.num_prefix_tokens), 3))
    torch.testing.assert_close(gated(tower, tokens, scores, 5, 1e-4), hard, rtol=0, atol=1e-5)


def test_the_gradient_by_the_scores_agrees_with_finite_differences(tower):
    tower.module.double()
    tower._projection.double()
    tokens = tower.embed(torch.randn(1, 3, 32, 32, dtype=torch.double), 3)
    scores = torch.randn(1, 16, dtype=torch.double)
    patches, _ = soft_gates(scores, 8, 1.0)

    def relaxed(raised):
        log_gates = nn.functional.logsigmoid(raised.gather(1, patches))
        return gated_features(tower, gather_tokens(tokens, patches, 1), log_gates, 3)

    assert torch.autograd.gradcheck(relaxed, scores.requires_grad_())


@torch.no_grad()
def half_pruned(predictor, tower, tokens, features):
    return feature_damage(tower.pool(tower.run(predictor.prune(tokens, 8).tokens, 3)), features).mean()


def test_it_learns_to_keep_the_feature_of_images_held_out_and_leaves_the_model_alone(tower):
    """Images are mixtures of four patterns, so that what is learned on some holds for the others."""
    tokens = (torch.randn(256, 4) @ torch.randn(4, 17 * 32)).unflatten(1, (17, 32))
    features = tower.pool(tower.run(tokens, 3)).detach()
    predictor = Predictor(32, 1, 16)
    before = {name: weight.clone() for name, weight in tower.module.state_dict().items()}
    report = distill(predictor, tower, tokens[None], features[None], 3, steps=1)
    after = distill(predictor, tower, tokens[None], features[None], 3, steps=60, learning_rate=2e-3)
    assert (after.n_train, after.n_held_out, after.steps) == (230, 26, 60)
    assert after.feature_error["0.5"] < 0.8 * report.feature_error["0.5"]
    assert all(torch.equal(weight, before[name]) for name, weight in tower.module.state_dict().items())
    assert all(weight.grad is None for weight in tower.module.parameters())


def test_the_correction_takes_over_from_what_was_dropped(tower):
    tokens = 3 * torch.randn(64, 17, 32)
    features = tower.pool(tower.run(tokens, 3)).detach()
    predictor = Predictor(32, 1, 16)
    distill(predictor, tower, tokens[None], features[None], 3, steps=60, learning_rate=2e-3)
    learned = half_pruned(predictor, tower, tokens, features)
    nn.init.zeros_(predictor.correction.weight)
    nn.init.zeros_(predictor.correction.bias)
    assert learned < 0.8 * half_pruned(predictor, tower, tokens, features)


def test_every_step_draws_a_view(tower):
    tokens = torch.randn(2, 8, 17, 32)
    features = tower.pool(tower.run(tokens.flatten(0, 1), 3)).detach().unflatten(0, (2, 8))
    weights = []
    for views in (tokens[:1], features[:1]), (tokens, features):
        torch.manual_seed(1)
        predictor = Predictor(32, 1, 16)
        distill(predictor, tower, *views, 3, steps=6)
        weights.append(predictor.score[1].weight.clone())
    assert not torch.equal(*weights)


def test_the_same_seed_gives_the_same_predictor(tower):
    tokens, weights = torch.randn(8, 17, 32), []
    features = tower.pool(tower.run(tokens, 3)).detach()
    for _ in range(2):
        torch.manual_seed(1)
        predictor = Predictor(32, 1, 16)
        distill(predictor, tower, tokens[None], features[None], 3, steps=3, seed=5)
        weights.append(predictor.score[1].weight.clone())
    assert torch.equal(*weights)


def test_every_tower_whose_pool_can_be_gated_is_distilled(case):
    tower = case.tower
    tokens = tower.embed(torch.cat([case.pixels, case.pixels]), 3)
    features = tower.pool(tower.run(tokens, 3))
    predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
    before = predictor.score[1].weight.clone()
    distill(predictor, tower, tokens[None], features[None], 3, steps=2)
    assert not torch.equal(predictor.score[1].weight, before)


def test_too_few_images_are_refused(tower):
    with pytest.raises(UserError, match="at least 4"):
        distill(Predictor(32, 1, 16), tower, torch.randn(1, 3, 17, 32), torch.randn(1, 3, 24), 3)
