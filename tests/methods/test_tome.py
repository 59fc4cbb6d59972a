from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from patchranking.methods.batch import Batch
from patchranking.methods.tome import ToMe, merge, tome, tome_schedule
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


def matched_and_merged(metric, r, num_prefix_tokens):
    """Bipartite soft matching as section 3 of the paper tells it: which patch merges into which, the r likeliest."""
    metric = F.normalize(metric[num_prefix_tokens:], dim=-1)
    cosines = metric[1::2] @ metric[::2].T
    best, partner = cosines.max(1)
    return [(2 * int(odd) + 1, 2 * int(partner[odd])) for odd in best.argsort(descending=True)[:r]]


def one_image(tower, tokens, counts):
    """ToMe on one image ``(tokens, width)``, patch after patch, with attention to a key weighted by its size."""
    prefix = tower.num_prefix_tokens
    sizes = torch.ones(len(tokens))
    for block in range(tower.depth):
        patches = len(tokens) - prefix
        r = min(patches - counts.get(block, patches), patches // 2)
        if r > 0:
            total, weight = (tokens * sizes[:, None]).clone(), sizes.clone()
            gone = matched_and_merged(tower.keys(tokens[None], block)[0], r, prefix)
            for source, target in gone:
                total[prefix + target] += total[prefix + source]
                weight[prefix + target] += weight[prefix + source]
            dropped = {source for source, _ in gone}
            order = [*range(1, patches, 2), *range(0, patches, 2)]  # odd places first, as merge leaves them
            stays = [*range(prefix), *(prefix + patch for patch in order if patch not in dropped)]
            tokens, sizes = (total / weight[:, None])[stays], weight[stays]
        tokens = tower.run(tokens[None], block, block + 1, key_bias=sizes.log()[None])[0]
    return tokens, sizes


@torch.inference_mode()
@pytest.mark.parametrize("kept", [{1: 0.75, 2: 0.5, 4: 0.3}, {0: 0.2, 3: 0.2}])
def test_it_equals_the_papers_algorithm_image_by_image(case, kept):
    tower, schedule = case.tower, Schedule(kept)
    tokens = tower.embed(case.pixels)
    found = tome(tower, tokens, schedule)
    for row, own in enumerate(tokens):
        merged, sizes = one_image(tower, own, schedule.kept(tower.num_patches))
        assert sizes.sum() == tower.num_prefix_tokens + tower.num_patches
        feature = tower.pool(merged[None], gates=sizes[None, tower.num_prefix_tokens :])[0]
        torch.testing.assert_close(found[row], feature, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_attention_counts_a_token_by_its_size_in_every_block_after_a_merge(case):
    """An attention mask of zeros in place of log sizes gives other features, so the test above would notice."""
    tower, biases = case.tower, []
    run, schedule = tower.run, Schedule({1: 0.75, 2: 0.5})

    def spied(tokens, start, stop=None, key_bias=None):
        biases.append(key_bias)
        return run(tokens, start, stop, key_bias=None if key_bias is None else 0 * key_bias)

    tokens = tower.embed(case.pixels)
    expected = tome(tower, tokens, schedule)
    tower.run = spied
    assert not torch.allclose(tome(tower, tokens, schedule), expected, atol=1e-5)
    patches, prefix = tower.num_patches, tower.num_prefix_tokens
    assert biases[0] is None
    assert all(torch.allclose(bias.exp().sum(1), torch.tensor(float(prefix + patches))) for bias in biases[1:])


@torch.inference_mode()
def test_the_method_spreads_its_merging_at_the_macs_of_the_reference(tower):
    pixels, reference = torch.randn(2, 3, 32, 32), Schedule({2: 0.5})
    encoding = ToMe().at(tower, reference, 0)
    assert encoding.schedule == tome_schedule(tower, reference)
    found = encoding.run(Batch(tower, pixels))
    assert torch.equal(found.features, tome(tower, tower.embed(pixels), encoding.schedule))
    assert found.keep_indices is None
