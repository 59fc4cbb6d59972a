from __future__ import annotations

import pytest
import torch

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

    model, data = load_model("demo"), load_data("demo:test", 12)
    return model.tower, torch.stack([model.preprocess(data.image(index)) for index in range(12)])


def test_does_less_damage_than_leave_out_on_a_trained_model(demo):
    tower, pixels = demo
    soft = sketched(tower, pixels)
    windows = leave_out(tower, pixels, stride=2)
    for kept in (101, 72, 43):
        random = damage(tower, pixels, random_ranking(pixels, 144, 0), kept).mean()
        hard = damage(tower, pixels, windows, kept).mean()
        assert damage(tower, pixels, soft, kept).mean() < 0.8 * hard < 0.8 * random


def test_steps_mend_the_first_order(demo):
    tower, pixels = demo
    first = damage(tower, pixels, sketched(tower, pixels, steps=0), 72).mean()
    assert damage(tower, pixels, sketched(tower, pixels, steps=12), 72).mean() < 0.7 * first


def test_comes_near_the_greedy_reference(demo):
    tower, pixels = demo
    reference = damage(tower, pixels[:3], iterative(tower, pixels[:3], group=16), 72).mean()
    assert damage(tower, pixels[:3], sketched(tower, pixels[:3], num_probes=5, steps=26), 72).mean() < 2 * reference


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
