from __future__ import annotations

import pytest
import torch

from patchranking.ranking import variants
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.windows import windows


@torch.inference_mode()
def brute_force(tower, pixels, block, size, stride):
    """One window at a time."""
    removed = windows(tower.grid, size, stride).tolist()
    tokens, damage = tower.embed(pixels, block), []
    full = tower.pool(tower.run(tokens, block)).double()
    for window in removed:
        keep = [i for i in range(tokens.shape[1]) if i - tower.num_prefix_tokens not in window]
        places = torch.tensor([[i for i in range(tower.num_patches) if i not in window]] * len(pixels))
        pruned = tower.pool(tower.run(tokens[:, keep], block, positions=places)).double()
        damage.append(1 - torch.cosine_similarity(pruned, full, dim=1))
    importance = torch.zeros(len(pixels), tower.num_patches, dtype=torch.double)
    for patch in range(tower.num_patches):
        covering = [d for d, window in zip(damage, removed, strict=True) if patch in window]
        importance[:, patch] = sum(covering) / len(covering)
    return importance


@pytest.mark.parametrize(("block", "size", "stride"), [(3, 2, 1), (0, 1, 1), (2, 2, 2)])
def test_fast_windows_equal_brute_force(case, block, size, stride, monkeypatch):
    monkeypatch.setitem(variants._TOKENS_PER_BATCH, "cpu", 90)
    found = leave_out(case.tower, case.pixels, block, size, stride)
    expected = brute_force(case.tower, case.pixels, block, size, stride)
    torch.testing.assert_close(found.importance.double(), expected, rtol=2e-3, atol=2e-7)


def test_removal_order_drops_the_least_important_first(tower):
    ranking = leave_out(tower, torch.randn(2, 3, 32, 32), stride=1)
    ordered = ranking.importance.gather(1, ranking.removal_order)
    assert (ordered.diff(dim=1) >= 0).all()


def test_sign_a_planted_useless_patch_goes_first_and_a_decisive_one_last(tower, monkeypatch):
    useless, decisive = 5, 10
    run = tower.run

    def planted(tokens, start, stop=None, positions=None):
        if start == 0:
            tokens = run(tokens, start, stop)
            tokens[:, 1:] = 0
            tokens[:, 1:, 0] = 1 + torch.arange(16) / 100
            tokens[:, 1 + useless] = 0
            tokens[:, 1 + decisive, 1] = 9
        return tokens

    monkeypatch.setattr(tower, "run", planted)
    monkeypatch.setattr(tower, "pool", lambda tokens: tokens[:, 1:].sum(1))
    ranking = leave_out(tower, torch.randn(1, 3, 32, 32), window=1)
    assert ranking.removal_order[0, 0] == useless
    assert ranking.removal_order[0, -1] == decisive
    assert ranking.importance[0].argmax() == decisive
