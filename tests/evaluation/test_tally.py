from __future__ import annotations

import numpy as np
import pytest
import torch

from patchranking.evaluation.tally import Tally, object_share


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
