from __future__ import annotations

import torch

from patchranking.ranking.objectives import confidence, feature_damage, label, preservation


def test_damage_is_one_minus_cosine():
    a, b = torch.randn(5, 8, dtype=torch.double), torch.randn(8, dtype=torch.double)
    expected = 1 - torch.cosine_similarity(a, b.expand_as(a), dim=-1)
    torch.testing.assert_close(feature_damage(a, b).double(), expected, rtol=1e-5, atol=1e-6)


def test_damage_keeps_its_digits_near_zero():
    full = torch.tensor([1.0, 0.0])
    angle = 1e-5
    pruned = torch.tensor([[1.0, angle]])
    assert abs(feature_damage(pruned, full).item() / (angle**2 / 2) - 1) < 1e-3


def setting():
    classes = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    features, images = torch.randn(5, 8), torch.tensor([0, 0, 1, 2, 1])
    cosines = torch.nn.functional.normalize(features, dim=1) @ classes.T
    return classes, features, images, (10 * cosines).softmax(1)


def test_preservation_compares_with_the_image_of_the_variant():
    full, features, images = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 2, 1, 1, 0])
    expected = 1 - torch.cosine_similarity(features, full[images], dim=1)
    torch.testing.assert_close(preservation(full)(features, images), expected, rtol=1e-4, atol=1e-6)


def test_label_is_the_surprise_at_the_true_class():
    classes, features, images, posterior = setting()
    labels = torch.tensor([3, 0, 1])
    expected = -posterior[torch.arange(5), labels[images]].log()
    damage = label(classes, 10.0, labels)(torch.randn(3, 8))
    torch.testing.assert_close(damage(features, images), expected)


def test_confidence_takes_the_likeliest_class_of_each_variant():
    classes, features, images, posterior = setting()
    damage = confidence(classes, 10.0)(torch.randn(3, 8))
    torch.testing.assert_close(damage(features, images), -posterior.amax(1).log())
