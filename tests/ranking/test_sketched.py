from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.ranking.gates import gated_features, probes, sketched_jacobian
from patchranking.ranking.iterative import iterative
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.ranking import Ranking
from patchranking.ranking.sketched import sketched


@torch.inference_mode()
def damage(tower, pixels, ranking, kept, block=3):
    tokens = tower.embed(pixels, block)
    full = tower.pool(tower.run(tokens, block))
    some = gather_tokens(tokens, top_patches(ranking.importance, kept), tower.num_prefix_tokens)
    return feature_damage(tower.pool(tower.run(some, block)), full)


def random_ranking(pixels, patches, seed):
    return Ranking.from_importance(torch.rand(len(pixels), patches, generator=torch.Generator().manual_seed(seed)))


def test_ranks_every_patch_of_every_model_once(case):
    patches = case.tower.num_patches
    ranking = sketched(case.tower, case.pixels, block=2, steps=3)
    assert ranking.importance.shape == (3, patches)
    assert ranking.importance.isfinite().all()
    assert torch.equal(ranking.removal_order.sort(dim=1).values, torch.arange(patches).expand(3, -1))
    assert not ranking.importance.requires_grad
    assert all(parameter.grad is None for parameter in case.tower.module.parameters())


def test_without_steps_it_is_the_order_of_the_sketched_jacobian(tower):
    pixels = torch.randn(3, 3, 32, 32)
    tokens = tower.embed(pixels, 3)
    log_gates = torch.zeros(3, 16, requires_grad=True)
    features = gated_features(tower, tokens, log_gates, 3)
    sketch = sketched_jacobian(features, log_gates, probes(5, features.shape[1], seed=7))
    ranking = sketched(tower, pixels, num_probes=5, steps=0, seed=7)
    assert torch.equal(ranking.removal_order, sketch.norm(dim=1).argsort(dim=1))


def slow_steps(tower, pixels, keep_rates, widths, lengths):
    """The search with 3 probes of seed 0 and every patch in every pass, whatever its gate, one image at a time."""
    found = []
    for image in pixels:
        tokens = tower.embed(image[None], 3)
        zeros = torch.zeros(1, tower.num_patches, requires_grad=True)
        full = gated_features(tower, tokens, zeros, 3)
        columns = sketched_jacobian(full, zeros, probes(3, full.shape[1], 0))[0].norm(dim=0)
        order = columns.argsort().argsort() / 16 + 1 / 32
        for keep, width, length in zip(keep_rates, widths, lengths, strict=True):
            place = (order.argsort().argsort() / 16 + 1 / 32).requires_grad_()
            above = (place - (1 - keep)) / width
            left_out = place < place.sort(descending=True).values[: math.ceil(16 * (keep + 3 * width))][-1]
            gates = F.logsigmoid(above).masked_fill(left_out, -torch.inf)
            features = gated_features(tower, tokens, gates[None], 3)
            (slope,) = torch.autograd.grad(1 - F.cosine_similarity(features, full.detach())[0], place)
            opening = (above.sigmoid() * (1 - above.sigmoid())).masked_fill(left_out, 0).detach()
            step = (slope - opening * slope.sum() / opening.sum()) / (columns + 0.1 * columns.mean())
            order = order - length * step / step.square().mean().sqrt()
        found.append(order)
    return torch.stack(found)


@pytest.mark.parametrize(("steps", "sweeps"), [(1, 1), (4, 1), (9, 1), (10, 2)])
def test_every_step_is_the_gradient_over_the_stiffness(tower, steps, sweeps):
    """Keep rates fall from 85 to 20 % in each sweep; widths and lengths of steps shrink over all of them."""
    pixels = torch.randn(2, 3, 32, 32)
    rates = [*np.geomspace(0.85, 0.2, steps // sweeps)] * sweeps
    widths, lengths = np.geomspace(0.1, 0.03, steps), np.geomspace(0.06, 0.012, steps)
    found = sketched(tower, pixels, steps=steps).importance
    torch.testing.assert_close(found, slow_steps(tower, pixels, rates, widths, lengths), rtol=0, atol=2e-3)


def test_does_not_depend_on_its_neighbours_in_the_batch(tower):
    pixels = torch.randn(4, 3, 32, 32)
    together = sketched(tower, pixels).importance
    alone = torch.cat([sketched(tower, one[None]).importance for one in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)


def test_the_same_seed_gives_the_same_bits_inside_inference_mode_too(tower):
    pixels = torch.randn(2, 3, 32, 32)
    expected = sketched(tower, pixels).importance
    with torch.inference_mode():
        found = sketched(tower, torch.stack(list(pixels))).importance
    assert torch.equal(found, expected)
    assert not torch.equal(sketched(tower, pixels, seed=1).importance, expected)


@pytest.fixture(scope="module")
def demo():
    from patchranking.data import load_data
    from patchranking.towers.load import load_model

    model, data = load_model("demo"), load_data("demo:test", 8)
    return model.tower, torch.stack([model.preprocess(data.image(index)) for index in range(8)])


@pytest.fixture(scope="module")
def soft(demo):
    """The ranking that the search finds."""
    return sketched(*demo)


def test_does_less_damage_than_leave_out_on_a_trained_model(demo, soft):
    tower, pixels = demo
    windows = leave_out(tower, pixels, stride=2)
    for kept in (101, 72, 43):
        random = damage(tower, pixels, random_ranking(pixels, 144, 0), kept).mean()
        hard = damage(tower, pixels, windows, kept).mean()
        assert damage(tower, pixels, soft, kept).mean() < 0.8 * hard < 0.8 * random


def test_steps_mend_the_first_order(demo, soft):
    tower, pixels = demo
    first = damage(tower, pixels, sketched(tower, pixels, steps=0), 72).mean()
    assert damage(tower, pixels, soft, 72).mean() < 0.7 * first


def test_comes_near_the_greedy_reference(demo):
    tower, pixels = demo
    reference = damage(tower, pixels[:2], iterative(tower, pixels[:2], group=24), 72).mean()
    assert damage(tower, pixels[:2], sketched(tower, pixels[:2], num_probes=5, steps=26), 72).mean() < 2 * reference


def test_wrong_settings(tower):
    with pytest.raises(UserError, match="0 gradient steps or more, not -1"):
        sketched(tower, torch.randn(1, 3, 32, 32), steps=-1)
    with pytest.raises(UserError, match="probes"):
        sketched(tower, torch.randn(1, 3, 32, 32), num_probes=0)


def test_a_model_that_pools_otherwise_is_refused():
    import timm

    from patchranking.towers import as_tower

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_base_patch16_224", pretrained=False, global_pool="max", class_token=False, **sizes)
    with pytest.raises(UserError, match="leave-out or the iterative search"):
        sketched(as_tower(model), torch.randn(1, 3, 32, 32))
