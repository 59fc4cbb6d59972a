from __future__ import annotations

import math

import numpy as np
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


def after(seed, tower, tokens, features, network="mixer", **settings):
    """Weights of a predictor after a distillation, all in a row."""
    torch.manual_seed(1)
    predictor = Predictor(32, 1, 16, network)
    distill(predictor, tower, tokens, features, 3, seed=seed, **settings)
    return nn.utils.parameters_to_vector(predictor.parameters()).detach()


def cached(tower, views=2, images=8):
    tokens = torch.randn(views, images, 17, 32)
    return tokens, tower.pool(tower.run(tokens.flatten(0, 1), 3)).detach().unflatten(0, (views, images))


def test_every_step_draws_one_view_with_its_own_features(tower):
    """The first step on two views is the one that either view alone would give, and both have their turn."""
    tokens, features = cached(tower)
    drawn = set()
    for seed in range(6):
        both = after(seed, tower, tokens, features, steps=1)
        alone = [after(seed, tower, tokens[[view]], features[[view]], steps=1) for view in range(2)]
        drawn |= {view for view in range(2) if torch.equal(both, alone[view])}
        assert any(torch.equal(both, weights) for weights in alone)
    assert drawn == {0, 1}


def test_every_step_draws_a_keep_rate_between_30_and_80_percent(tower):
    seen = []
    after(0, tower, *cached(tower), steps=60, entering=lambda tokens, keep: seen.append(keep) or (tokens, 8))
    training, measuring = seen[:60], seen[60:]
    assert measuring == [0.8, 0.6, 0.5, 0.4]
    assert 0.3 <= min(training) < 0.35
    assert 0.75 < max(training) <= 0.8
    assert sum(training) / 60 == pytest.approx(0.55, abs=0.05)


@pytest.mark.parametrize(("patches", "left", "share"), [(10, 4, 4 / 10), (10, 10, 9 / 10)])
def test_the_predictor_is_told_the_share_that_stays_of_what_came(tower, monkeypatch, patches, left, share):
    """One patch at least goes while it learns."""
    told = []
    correct = Predictor.correct

    def watched(self, tokens, keep):
        told.append(keep)
        return correct(self, tokens, keep)

    monkeypatch.setattr(Predictor, "correct", watched)
    after(0, tower, *cached(tower), "mlp", steps=2, entering=lambda seen, keep: (seen[:, : 1 + patches], left))
    assert told == [share] * 2 + [left / patches] * 4


def test_the_gates_narrow_from_a_tenth_to_three_hundredths_of_the_places(tower, monkeypatch):
    """The width follows from the gate of the last patch kept, half a place above the threshold."""
    gates = []
    run = tower.run

    def watched(tokens, start, stop=None, key_bias=None):
        gates.extend([] if key_bias is None else [key_bias[:, 1:].detach()])
        return run(tokens, start, stop, key_bias)

    tokens, features = cached(tower)
    monkeypatch.setattr(tower, "run", watched)
    after(0, tower, tokens, features, steps=9, entering=lambda seen, keep: (seen, 6))
    last_kept = torch.stack([own.exp().sort(dim=1, descending=True).values[:, 5] for own in gates])
    widths = 0.5 / 16 / last_kept.logit()
    expected = torch.from_numpy(np.geomspace(0.1, 0.03, 9)).float()[:, None]
    torch.testing.assert_close(widths, expected.expand(9, 7), rtol=1e-3, atol=0)
    assert [own.shape[1] for own in gates] == [min(16, math.ceil(6 + 4 * 16 * width.item())) for width in expected]


def test_a_step_warms_up_and_falls_by_a_cosine_to_a_twentieth(tower, optimiser_steps):
    after(0, tower, *cached(tower), steps=100, learning_rate=0.5, weight_decay=0.2)
    rates = [step["lr"] / 0.5 for step in optimiser_steps]
    cosine = [0.05 + 0.95 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)]
    warm_up = [*np.linspace(0.05, 1, 20), *np.ones(80)]
    assert rates == pytest.approx([a * b for a, b in zip(cosine, warm_up, strict=True)])
    assert {step["weight_decay"] for step in optimiser_steps} == {0.2}


def test_a_batch_counts_as_the_mean_of_its_images(tower, optimiser_steps):
    tokens, features = cached(tower, views=1, images=1)
    alike = tokens.expand(-1, 9, -1, -1), features.expand(-1, 9, -1)
    for batch_size in (2, 8):
        after(0, tower, *alike, steps=1, batch_size=batch_size)
    few, many = optimiser_steps
    assert few["norm"] == pytest.approx(many["norm"], rel=1e-4)
    assert few["norm"] < 0.9, "not cut"


def test_long_gradients_are_cut_to_length_one(tower, optimiser_steps):
    """Scores that differ little have steep gradients, since they are standardised."""
    predictor = Predictor(32, 1, 16)
    nn.init.normal_(predictor.score[1].weight, std=1e-4)
    distill(predictor, tower, *cached(tower), 3, steps=3)
    assert [step["norm"] for step in optimiser_steps] == pytest.approx([1, 1, 1], abs=1e-4)


def test_images_held_out_are_never_learned_from_and_alone_are_measured(tower):
    tokens, features = cached(tower, images=20)
    held_out = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:5]
    spoiled = tokens.clone()
    spoiled[:, held_out] = torch.nan
    settings = {"steps": 12, "batch_size": 4, "held_out": held_out}
    assert torch.equal(after(3, tower, spoiled, features, **settings), after(3, tower, tokens, features, **settings))
    predictor = Predictor(32, 1, 16)
    report = distill(predictor, tower, tokens, features, 3, seed=3, **settings)
    assert (report.n_train, report.n_held_out, report.steps) == (15, 5, 12)
    assert not predictor.training
    for rate, count in (("0.8", 13), ("0.6", 10), ("0.5", 8), ("0.4", 6)):
        with torch.no_grad():
            found = tower.pool(tower.run(predictor.prune(tokens[0, held_out], count).tokens, 3))
        damage = 1 - torch.cosine_similarity(found, features[0, held_out])
        assert report.feature_error[rate] == pytest.approx(damage.mean().item(), abs=1e-5)


def test_every_image_is_seen_as_often_as_any_other(tower):
    """Three steps of 6 are two passes over 9 images."""
    tokens, features = cached(tower, views=1, images=10)
    seen = []

    def enter(entering, keep):
        seen.extend(int((tokens[0] == own).all((1, 2)).nonzero()) for own in entering)
        return entering, 8

    after(0, tower, tokens, features, steps=3, batch_size=6, entering=enter)
    first, second, held_out = seen[:9], seen[9:18], {*seen[18:]}
    assert set(first) == set(second) == {*range(10)} - held_out
    assert first != second


def test_the_same_seed_gives_the_same_predictor_and_another_another(tower):
    views = cached(tower)
    assert torch.equal(after(5, tower, *views, steps=3), after(5, tower, *views, steps=3))
    assert not torch.equal(after(5, tower, *views, steps=3), after(6, tower, *views, steps=3))


def test_every_tower_whose_pool_can_be_gated_is_distilled(case):
    """What is done to the feature of images seen often falls, and the model's weights get no gradient."""
    tower = case.tower
    for weight in tower.blocks.parameters():
        nn.init.normal_(weight, std=0.3)
    tokens = 3 * torch.randn(24, tower.num_prefix_tokens + tower.num_patches, tower.width)
    features = tower.pool(tower.run(tokens, 3))
    predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
    half = tower.num_patches // 2

    @torch.no_grad()
    def error():
        return feature_damage(tower.pool(tower.run(predictor.prune(tokens, half).tokens, 3)), features).mean().item()

    before = error()
    distill(predictor, tower, tokens[None], features[None], 3, steps=30, learning_rate=1e-2)
    assert error() < 0.8 * before
    assert all(weight.grad is None for weight in tower.module.parameters())


def test_too_few_images_are_refused(tower):
    with pytest.raises(UserError, match="at least 4"):
        distill(Predictor(32, 1, 16), tower, torch.randn(1, 3, 17, 32), torch.randn(1, 3, 24), 3)
