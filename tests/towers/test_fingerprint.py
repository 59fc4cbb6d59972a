from __future__ import annotations

import copy

import pytest
import torch

from patchranking.towers import as_tower
from patchranking.towers.fingerprint import fingerprint, matches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_weights_in_another_precision_match(case, dtype):
    other = as_tower(copy.deepcopy(case.model).to(dtype))
    assert matches(fingerprint(case.tower), fingerprint(other))


def test_slightly_tuned_weights_do_not_match(case):
    before = fingerprint(case.tower)
    case.tower.identity()[1].mul_(1.05)
    assert not matches(before, fingerprint(case.tower))


def test_fingerprints_of_other_lengths_do_not_match():
    assert not matches([1.0, 2.0], [1.0])
