from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from patchranking.errors import UserError
from patchranking.predictor import distill as module
from patchranking.predictor.distill import distill, soft_damage, soft_gates
from patchranking.predictor.losses import standardise
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.ranking.gates import gated_features
from patchranking.ranking.objectives import feature_damage
from patchranking.towers.identity import BaseModel

ONE, TWO = Schedule({3: 0.5}), Schedule({1: 0.75, 3: 0.5})


def gated(tower, tokens, scores, count, width, block=3):
    patches, log_gates = soft_gates(scores, count, width)
    return gated_features(tower, gather_tokens(tokens, patches, tower.num_prefix_tokens), log_gates, block, patches)


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
    most = 0.06 * max(1, expected.abs().max().item())
    torch.testing.assert_close(gated(tower, tokens, scores, 4, 0.03), expected, rtol=0, atol=most)


@torch.no_grad()
def test_sharp_gates_equal_hard_pruning(case):
    tower = case.tower
    tokens = tower.embed(case.pixels, 3)
    scores = torch.stack([torch.randperm(tower.num_patches).float() for _ in range(3)])
    best = top_patches(scores, 5)
    hard = tower.pool(tower.run(gather_tokens(tokens, best, tower.num_prefix_tokens), 3, positions=best))
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


def stages(tower, schedule=ONE, network="mixer", merges=True):
    """New predictors; the later ones take any number of patches."""
    return {
        block: Predictor.for_tower(tower, network if block == schedule.block else "mlp", merges=merges)
        for block in schedule.stages
    }


@torch.no_grad()
def attached_damage(predictors, tower, tokens, features, schedule):
    """What the attached pruner does to the features."""
    pruner = Pruner(predictors, BaseModel.of(tower, "tiny"), schedule).eval()
    with pruner.attached(tower):
        return feature_damage(tower.pool(tower.run(tokens, schedule.block)), features)


@torch.no_grad()
@pytest.mark.parametrize("merges", [True, False])
def test_a_hard_choice_is_what_the_attached_pruner_does(case, merges):
    tower = case.tower
    tokens, features = tower.embed(case.pixels, 1), tower(case.pixels)
    predictors = stages(tower, TWO, merges=merges)
    expected = attached_damage(predictors, tower, tokens, features, TWO)
    assert expected.min() > 5e-6
    found = soft_damage(predictors, tower, tokens, features, TWO)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=4e-7)


@torch.no_grad()
def test_patches_that_are_half_gone_count_half_where_patches_are_pooled(case):
    """As in the soft ranking."""
    tower = case.tower
    tokens, features, schedule = tower.embed(case.pixels, 3), tower(case.pixels), Schedule({3: 0.5})
    predictors = stages(tower, schedule, merges=False)
    for width in (0.1, 1e-3):
        expected = gated(tower, tokens, predictors[3](tokens), tower.num_patches // 2, width)
        found = soft_damage(predictors, tower, tokens, features, schedule, width)
        torch.testing.assert_close(found, feature_damage(expected, features), rtol=1e-3, atol=4e-7)
    hard = soft_damage(predictors, tower, tokens, features, schedule)
    torch.testing.assert_close(found, hard, rtol=1e-3, atol=4e-7)


def test_gradients_reach_choice_matching_fate_and_correction_of_every_stage(tower):
    predictors, tokens = stages(tower, TWO), torch.randn(4, 17, 32)
    features = tower.pool(tower.run(tokens, 1))
    soft_damage(predictors, tower, tokens, features, TWO.at(0.25), 0.03).mean().backward()
    parts = ("reduce.1", "score.1", "match", "fate", "correction")
    for predictor in predictors.values():
        weights = dict(predictor.named_parameters())
        assert all(weights[f"{part}.weight"].grad.any() for part in parts)
        assert all(weights[f"{part}.bias"].grad.any() for part in ("match", "fate", "correction"))
    assert all(weight.grad is None for weight in tower.module.parameters())


def test_a_stage_learns_for_the_ones_after_it(tower):
    """The gradient of the first one is another where the second one chooses otherwise."""
    predictors, tokens = stages(tower, TWO), torch.randn(4, 17, 32)
    features, found = tower.pool(tower.run(tokens, 1)), []
    for _ in range(2):
        loss = soft_damage(predictors, tower, tokens, features, TWO, 0.1).mean()
        found += torch.autograd.grad(loss, predictors[1].score[1].weight)
        predictors[3].score[1].weight.data.neg_()
    assert not torch.allclose(*found, rtol=0.01)


@pytest.mark.parametrize("merges", [True, False])
def test_it_learns_to_keep_the_feature_of_images_held_out_and_leaves_the_model_alone(tower, merges):
    """Images are mixtures of four patterns, so that what is learned on some holds for the others."""
    tokens = (torch.randn(256, 4) @ torch.randn(4, 17 * 32)).unflatten(1, (17, 32))
    features = tower.pool(tower.run(tokens, 1)).detach()
    predictors = stages(tower, TWO, merges=merges)
    before = {name: weight.clone() for name, weight in tower.module.state_dict().items()}
    report = distill(predictors, tower, tokens[None], features[None], TWO, steps=1)
    after = distill(predictors, tower, tokens[None], features[None], TWO, steps=60, learning_rate=2e-3)
    assert (after.n_train, after.n_held_out, after.steps) == (230, 26, 60)
    assert after.feature_error["0.5"] < 0.8 * report.feature_error["0.5"]
    assert all(torch.equal(weight, before[name]) for name, weight in tower.module.state_dict().items())
    assert all(weight.grad is None for weight in tower.module.parameters())


@pytest.mark.parametrize("merges", [True, False])
def test_the_correction_takes_over_from_what_was_dropped(tower, merges):
    tokens = 3 * torch.randn(64, 17, 32)
    features = tower.pool(tower.run(tokens, 3)).detach()
    predictors = stages(tower, merges=merges)
    distill(predictors, tower, tokens[None], features[None], ONE, steps=60, learning_rate=2e-3)
    learned = attached_damage(predictors, tower, tokens, features, ONE).mean()
    nn.init.zeros_(predictors[3].correction.weight)
    nn.init.zeros_(predictors[3].correction.bias)
    assert learned < 0.8 * attached_damage(predictors, tower, tokens, features, ONE).mean()


def test_merging_is_learned_where_it_helps(tower):
    """All patches of an image are alike: one that stands for all is as good as all."""
    tokens = torch.cat([torch.randn(64, 1, 32), 3 * torch.randn(64, 1, 32).expand(-1, 16, -1)], 1)
    features = tower.pool(tower.run(tokens, 3)).detach()
    predictors = stages(tower)
    nn.init.constant_(predictors[3].fate.bias, -7.0)
    nn.init.zeros_(predictors[3].fate.weight)
    share = predictors[3].prune(tokens, 8).sizes.detach()
    distill(predictors, tower, tokens[None], features[None], ONE, steps=60, learning_rate=0.3)
    assert share.max() < 1.01
    assert predictors[3].prune(tokens, 8).sizes.mean() > 1.2


def after(seed, tower, tokens, features, network="mixer", schedule=ONE, merges=True, **settings):
    """Weights of predictors after a distillation, all in a row."""
    torch.manual_seed(1)
    predictors = stages(tower, schedule, network, merges)
    distill(predictors, tower, tokens, features, schedule, seed=seed, **settings)
    return torch.cat([nn.utils.parameters_to_vector(own.parameters()).detach() for own in predictors.values()])


def cached(tower, views=2, images=8):
    tokens = torch.randn(views, images, 17, 32)
    return tokens, tower.pool(tower.run(tokens.flatten(0, 1), 3)).detach().unflatten(0, (views, images))


@pytest.fixture
def passes(monkeypatch):
    """The tokens, the schedule and the width of every pass."""
    seen = []

    def watched(predictors, tower, tokens, full, schedule, width=None, **options):
        seen.append((tokens, schedule, width))
        return soft_damage(predictors, tower, tokens, full, schedule, width, **options)

    monkeypatch.setattr(module, "soft_damage", watched)
    return seen


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


def test_every_step_draws_a_keep_rate_between_10_and_70_percent(tower, passes):
    after(0, tower, *cached(tower), schedule=TWO, steps=60)
    schedules = [schedule for _, schedule, _ in passes]
    assert schedules == [TWO.at(schedule.keep) for schedule in schedules]
    training, measuring = ([schedule.keep for schedule in part] for part in (schedules[:60], schedules[60:]))
    assert measuring == [0.8, 0.6, 0.5, 0.4]
    assert 0.1 <= min(training) < 0.15
    assert 0.65 < max(training) <= 0.7
    assert sum(training) / 60 == pytest.approx(0.4, abs=0.06)


def test_a_stage_is_told_how_many_stay_of_what_came(tower, monkeypatch):
    """One patch at least goes while it learns."""
    told, prune = [], Predictor.prune

    def watched(self, tokens, count, *arguments, **options):
        told.append((tokens.shape[1] - 1, count))
        return prune(self, tokens, count, *arguments, **options)

    monkeypatch.setattr(Predictor, "prune", watched)
    monkeypatch.setattr(module, "_KEEP_RATES", (1.0, 1.0))
    monkeypatch.setattr(module, "_REPORTED", (1.0, 0.5))
    after(0, tower, *cached(tower), schedule=TWO, steps=2)
    assert told == [(16, 15), (16, 15)] * 2 + [(16, 16), (16, 16), (16, 12), (12, 8)]


def test_the_gates_narrow_from_a_tenth_to_three_hundredths_of_the_places(tower, monkeypatch):
    """The width follows from the gate of the last patch kept, half a place above the threshold."""
    gates = []
    run = tower.run

    def watched(tokens, start, stop=None, key_bias=None, positions=None):
        gates.extend([] if key_bias is None else [key_bias[:, 1:].detach()])
        return run(tokens, start, stop, key_bias, positions)

    tokens, features = cached(tower)
    monkeypatch.setattr(tower, "run", watched)
    monkeypatch.setattr(module, "_KEEP_RATES", (0.375, 0.375))
    after(0, tower, tokens, features, steps=9, merges=False)
    last_kept = torch.stack([own.exp().sort(dim=1, descending=True).values[:, 5] for own in gates])
    widths = 0.5 / 16 / last_kept.logit()
    expected = torch.from_numpy(np.geomspace(0.1, 0.03, 9)).float()[:, None]
    torch.testing.assert_close(widths, expected.expand(9, 7), rtol=1e-3, atol=0)
    assert [own.shape[1] for own in gates] == [min(16, math.ceil(6 + 2 * 16 * width.item())) for width in expected]


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
    predictors = stages(tower)
    nn.init.normal_(predictors[3].score[1].weight, std=1e-4)
    distill(predictors, tower, *cached(tower), ONE, steps=3)
    assert [step["norm"] for step in optimiser_steps] == pytest.approx([1, 1, 1], abs=1e-4)


def test_images_held_out_are_never_learned_from_and_alone_are_measured(tower):
    tokens, features = cached(tower, images=20)
    held_out = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:5]
    spoiled = tokens.clone()
    spoiled[:, held_out] = torch.nan
    settings = {"steps": 12, "batch_size": 4, "held_out": held_out}
    of = {"schedule": TWO} | settings
    assert torch.equal(after(3, tower, spoiled, features, **of), after(3, tower, tokens, features, **of))
    predictors = stages(tower, TWO)
    report = distill(predictors, tower, tokens, features, TWO, seed=3, **settings)
    assert (report.n_train, report.n_held_out, report.steps) == (15, 5, 12)
    assert not any(predictor.training for predictor in predictors.values())
    for rate, error in report.feature_error.items():
        schedule = TWO.at(float(rate))
        damage = attached_damage(predictors, tower, tokens[0, held_out], features[0, held_out], schedule)
        assert error == pytest.approx(damage.mean().item(), abs=1e-5)


def test_every_image_is_seen_as_often_as_any_other(tower, passes):
    """Three steps of 6 are two passes over 9 images."""
    tokens, features = cached(tower, views=1, images=10)
    after(0, tower, tokens, features, steps=3, batch_size=6)
    seen = [int((tokens[0] == own).all((1, 2)).nonzero()) for batch, _, _ in passes for own in batch]
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
    features = tower.pool(tower.run(tokens, 1))
    predictors = stages(tower, TWO)
    before = attached_damage(predictors, tower, tokens, features, TWO).mean()
    distill(predictors, tower, tokens[None], features[None], TWO, steps=16, learning_rate=1.5e-2)
    assert attached_damage(predictors, tower, tokens, features, TWO).mean() < 0.8 * before
    assert all(weight.grad is None for weight in tower.module.parameters())


def test_too_few_images_are_refused(tower):
    with pytest.raises(UserError, match="at least 4"):
        distill(stages(tower), tower, torch.randn(1, 3, 17, 32), torch.randn(1, 3, 24), ONE)
