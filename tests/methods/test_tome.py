from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from patchranking.methods.tome import merge, tome, tome_schedule
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule


@pytest.mark.parametrize(("patches", "kept"), [(9, 6), (9, 5), (8, 4), (8, 8)])
def test_merge_equals_the_loop_over_patches(patches, kept):
    tokens, metric = torch.randn(3, 2 + patches, 5), torch.randn(3, 2 + patches, 4)
    sizes = torch.randint(1, 4, (3, 2 + patches)).float()
    found, total = merge(tokens, sizes, metric, kept, 2)
    for row in range(3):
        odd, even = range(1, patches, 2), range(0, patches, 2)

        def similar(one, other, row=row):
            return F.cosine_similarity(metric[row, 2 + one], metric[row, 2 + other], dim=0).item()

        partner = {a: max(even, key=lambda b, a=a: similar(a, b)) for a in odd}
        gone = sorted(odd, key=lambda a: -similar(a, partner[a]))[: patches - kept]
        groups = [[a] for a in odd if a not in gone] + [[b, *(a for a in gone if partner[a] == b)] for b in even]
        for place, group in enumerate(groups, 2):
            weight = torch.stack([sizes[row, 2 + patch] for patch in group])
            mean = (weight[:, None] * torch.stack([tokens[row, 2 + patch] for patch in group])).sum(0) / weight.sum()
            torch.testing.assert_close(found[row, place], mean)
            assert total[row, place] == weight.sum()
        torch.testing.assert_close(found[row, :2], tokens[row, :2])
    assert found.shape == (3, 2 + kept, 5)


@torch.inference_mode()
def test_nothing_merged_is_the_dense_model(case):
    expected = case.tower(case.pixels)
    assert torch.equal(tome(case.tower, case.tower.embed(case.pixels), Schedule({1: 1.0})), expected)


@torch.inference_mode()
def test_merging_twins_is_lossless(tower):
    """Proportional attention counts a merged token by its size, so equal tokens lose nothing."""
    tokens = tower.embed(torch.randn(2, 3, 32, 32), 1)
    tokens[:, 2::2] = tokens[:, 1::2]
    expected = tower.run(tokens, 1, 2)
    merged, sizes = merge(tokens, torch.ones(2, 17), tokens, 8, 1)
    found = tower.run(merged, 1, 2, key_bias=sizes.log())
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", [{2: 14 / 16}, {2: 10 / 16}, {2: 8 / 16}, {2: 6 / 16}, {1: 14 / 16, 3: 6 / 16}])
def test_its_macs_are_those_of_dropping(tower, stages):
    schedule = tome_schedule(tower, Schedule(stages))
    found, aim = (analytic_macs(tower, 0, s) for s in (schedule, Schedule(stages)))
    assert abs(found - aim) < 0.03 * aim
    assert min(schedule.stages) == 1


@torch.inference_mode()
def test_every_tower_merges(case):
    tower = case.tower
    schedule = tome_schedule(tower, Schedule({2: 0.75}))
    found, dense = tome(tower, tower.embed(case.pixels), schedule), tower(case.pixels)
    assert found.shape == dense.shape
    assert not torch.equal(found, dense)
