from __future__ import annotations

import numpy as np
import pytest

from patchranking.methods.measure import object_share


def test_object_share_sums_to_one_and_follows_the_mask():
    mask = np.zeros((96, 96), bool)
    mask[:8, 8:24] = True
    share = object_share(mask, (12, 12))
    assert share.sum().item() == pytest.approx(1)
    assert share.view(12, 12)[0, 1].item() == pytest.approx(0.5)
    assert share.view(12, 12)[0, 2].item() == pytest.approx(0.5)
