from __future__ import annotations

import numpy as np
import pytest
import torch

from patchranking.methods.tally import Tally, object_share


def test_object_share_sums_to_one_and_follows_the_mask():
    mask = np.zeros((96, 96), bool)
    mask[:8, 8:24] = True
    share = object_share(mask, (12, 12))
    assert share.sum().item() == pytest.approx(1)
    assert share.view(12, 12)[0, 1].item() == pytest.approx(0.5)
    assert share.view(12, 12)[0, 2].item() == pytest.approx(0.5)


def test_means_over_all_images_and_over_some():
    tally = Tally(torch.eye(2))
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    full = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    tally.add(("m", 0.5), [7, 3, 5], features, full, torch.tensor([0, 0, 0]), torch.tensor([1.0, 0.5, 0.0]))
    assert tally.mean(("m", 0.5), "top1") == pytest.approx(200 / 3)
    assert tally.mean(("m", 0.5), "top1", {3}) == 0
    assert tally.mean(("m", 0.5), "feature_cosine") == pytest.approx(1 / 3)
    assert tally.mean(("m", 0.5), "object_patches_kept", {7, 5}) == pytest.approx(0.5)
    assert tally.count(("m", 0.5)) == 3


def test_a_measure_that_was_not_taken_is_none():
    tally = Tally(None)
    tally.add(("m", 0.5), [0], torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), None)
    assert tally.mean(("m", 0.5), "top1") is None
    assert tally.mean(("other", 0.5), "top1") is None


def test_top5_classes_and_features_of_indexed_images():
    tally = Tally(torch.eye(7), frozenset({1, 5}))
    features = torch.eye(7)[[0, 1, 2]] + 0.1 * torch.arange(7)
    tally.add(("m", 0.5), [5, 1, 2], features, features, torch.tensor([0, 6, 1]), None)
    assert list(tally.values(("m", 0.5), "top1").values()) == [100, 0, 0]
    assert list(tally.values(("m", 0.5), "top5").values()) == [100, 100, 0]
    assert tally.mean_per_class(("m", 0.5), [3, 3, 1, 1, 1, 1]) == pytest.approx((0 + 50) / 2)
    images, kept = tally.features(("m", 0.5))
    assert images == [1, 5]
    torch.testing.assert_close(kept, torch.nn.functional.normalize(features[[1, 0]], dim=-1))
    assert tally.features(("other", 0.5))[0] == []
    assert tally.mean_per_class(("other", 0.5), []) is None
