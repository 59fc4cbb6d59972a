from __future__ import annotations

import torch

from patchranking.ranking.scores import feature_damage


def test_damage_is_one_minus_cosine():
    a, b = torch.randn(5, 8, dtype=torch.double), torch.randn(8, dtype=torch.double)
    expected = 1 - torch.cosine_similarity(a, b.expand_as(a), dim=-1)
    torch.testing.assert_close(feature_damage(a, b).double(), expected, rtol=1e-5, atol=1e-6)


def test_damage_keeps_its_digits_near_zero():
    full = torch.tensor([1.0, 0.0])
    angle = 1e-5
    pruned = torch.tensor([[1.0, angle]])
    assert abs(feature_damage(pruned, full).item() / (angle**2 / 2) - 1) < 1e-3
