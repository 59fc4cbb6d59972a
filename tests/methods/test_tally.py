from __future__ import annotations

import pytest
import torch

from patchranking.methods.tally import DENSE, Tally


def test_means_over_all_images_and_over_some():
    tally = Tally([0] * 8)
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    full = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    tally.add(("m", 0.5), [7, 3, 5], features, full, torch.eye(2), torch.tensor([1.0, 0.5, 0.0]))
    assert tally.mean(("m", 0.5), "top1") == pytest.approx(200 / 3)
    assert tally.mean(("m", 0.5), "top1", {3}) == 0
    assert tally.mean(("m", 0.5), "feature_cosine") == pytest.approx(1 / 3)
    assert tally.mean(("m", 0.5), "object_patches_kept", {7, 5}) == pytest.approx(0.5)
    assert tally.count(("m", 0.5)) == 3


def test_a_measure_that_was_not_taken_is_none():
    tally = Tally()
    tally.add(("m", 0.5), [0], torch.ones(1, 2), torch.ones(1, 2), torch.eye(2))
    assert tally.mean(("m", 0.5), "top1") is None
    assert tally.mean(("other", 0.5), "top1") is None


def test_top5_and_features_of_indexed_images():
    tally = Tally([9, 6, 1, 9, 9, 0], frozenset({1, 5}))
    features = torch.eye(7)[[0, 1, 2]] + 0.1 * torch.arange(7)
    tally.add(("m", 0.5), [5, 1, 2], features, features, torch.eye(7))
    assert list(tally.values(("m", 0.5), "top1").values()) == [100, 0, 0]
    assert tally.values(("m", 0.5), "prediction") == {5: 0, 1: 1, 2: 2}
    assert list(tally.values(("m", 0.5), "top5").values()) == [100, 100, 0]
    images, kept = tally.features(("m", 0.5))
    assert images == [1, 5]
    torch.testing.assert_close(kept, torch.nn.functional.normalize(features[[1, 0]], dim=-1))
    assert tally.features(("other", 0.5))[0] == []


def test_a_class_counts_once_whatever_its_images():
    tally = Tally([3, 1, 3, 1, 1, 1])
    features = torch.eye(4)[[1, 3, 2]]
    tally.add(DENSE, [5, 0, 1], features, features, torch.eye(4))
    assert tally.mean(DENSE, "top1") == pytest.approx(200 / 3)
    assert tally.mean_per_class(DENSE) == pytest.approx((100 + 50) / 2)
    assert tally.mean_per_class("other") is None
    assert Tally().mean_per_class(DENSE) is None
