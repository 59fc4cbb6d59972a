from __future__ import annotations

import torch

from patchranking.methods.random import Random


def test_scores_are_seeded_and_differ_between_images(tower):
    tokens = torch.zeros(3, 17, 32)
    first, again, other = (Random().scorer(tower, 3, seed)(tokens) for seed in (0, 0, 1))
    assert first.shape == (3, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
