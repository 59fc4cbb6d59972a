from __future__ import annotations

import torch

from patchranking.methods.batch import Batch
from patchranking.methods.random import Random
from patchranking.pruning.schedule import Schedule


def test_scores_are_seeded_and_differ_between_images(tower):
    tokens = torch.zeros(3, 17, 32)
    first, again, other = (Random().scorer(tower, 3, seed)(tokens) for seed in (0, 0, 1))
    assert first.shape == (3, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_an_image_gets_the_same_scores_whatever_the_batches(tower):
    whole, parts = (Random().scorer(tower, 3, 5) for _ in range(2))
    tokens = torch.zeros(7, 17, 32)
    assert torch.equal(whole(tokens), torch.cat([parts(part) for part in tokens.split([1, 4, 2])]))


def test_a_lower_keep_rate_keeps_some_of_the_same_patches(tower):
    batch = Batch(tower, torch.randn(3, 3, 32, 32))
    more, fewer = (Random().at(tower, Schedule({2: rate}), 4).run(batch).keep_indices for rate in (0.75, 0.25))
    assert all(set(few) < set(many) for few, many in zip(fewer.tolist(), more.tolist(), strict=True))


def test_scores_are_uniform(tower):
    scores = Random().scorer(tower, 3, 0)(torch.zeros(2000, 17, 32))
    assert 0 <= scores.min() < 0.01
    assert 0.99 < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.01
    assert scores.mean(0).std() < 0.02
