from __future__ import annotations

import torch

from patchranking.methods.batch import Batch
from patchranking.methods.random import Random, random_importance
from patchranking.pruning.schedule import Schedule


def test_scores_are_seeded_and_differ_between_images():
    first, again, other = (random_importance(16, range(3), seed) for seed in (0, 0, 1))
    assert first.shape == (3, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_an_image_keeps_the_same_patches_whatever_the_batches_and_their_order(tower):
    pixels, images = torch.randn(5, 3, 32, 32), [4, 9, 0, 7, 2]
    encoding = Random().at(tower, Schedule({2: 0.5}), 5)
    whole = encoding.run(Batch(tower, pixels, images)).keep_indices
    for row in reversed(range(5)):
        alone = encoding.run(Batch(tower, pixels[[row]], [images[row]])).keep_indices
        assert torch.equal(alone[0], whole[row])


def test_patches_go_by_the_seed(tower):
    batch = Batch(tower, torch.randn(3, 3, 32, 32))
    first, again, other = (Random().at(tower, Schedule({2: 0.5}), seed).run(batch).keep_indices for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_lower_keep_rate_keeps_some_of_the_same_patches(tower):
    batch = Batch(tower, torch.randn(3, 3, 32, 32))
    more, fewer = (Random().at(tower, Schedule({2: rate}), 4).run(batch).keep_indices for rate in (0.75, 0.25))
    assert all(set(few) < set(many) for few, many in zip(fewer.tolist(), more.tolist(), strict=True))


def test_scores_are_uniform():
    scores = random_importance(16, range(2000), 0)
    assert 0 <= scores.min() < 0.01
    assert 0.99 < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.01
    assert scores.mean(0).std() < 0.02
