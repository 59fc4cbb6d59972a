from __future__ import annotations

import math
from itertools import pairwise

import pytest
import timm
import torch
from torch.nn import functional as F

from patchranking.evaluation.cost import count_macs
from patchranking.methods.pitome import PiToMe, by_energy, energy, pitome_schedule
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower


def literal_energies(keys, margin):
    """Energy of every patch of one image, pair by pair: similar pairs add to it, others take from it."""
    found = []
    for one in keys:
        total = 0.0
        for other in keys:
            over = F.cosine_similarity(one, other, dim=0).item() - margin
            total += over if over > 0 else math.exp(over) - 1
        found.append(total / len(keys))
    return found


def literal_matching(keys, k, margin, protect):
    """Which patch of one image merges into which, and which patches stay."""
    energies = literal_energies(keys, margin)
    order = sorted(range(len(keys)), key=lambda patch: -energies[patch])
    candidates, protected = (order[: 2 * k], order[2 * k :]) if protect else (order, [])
    a, b = candidates[::2], candidates[1::2]
    edges = []
    for patch in a:
        cosines = {other: F.cosine_similarity(keys[patch], keys[other], dim=0).item() for other in b}
        partner = max(cosines, key=cosines.get)
        edges.append((cosines[partner], patch, partner))
    edges.sort(reverse=True)
    merging = {patch: partner for _, patch, partner in edges[:k]}
    return merging, protected + [patch for _, patch, _ in edges[k:]] + b


@pytest.mark.parametrize("margin", [0.9, 0.45, 0.0])
def test_energy_is_large_for_patches_that_many_are_like(margin):
    keys = torch.randn(2, 7, 4)
    keys[:, 1:4] = keys[:, :1] + 0.1 * torch.randn(2, 3, 4)
    unit = F.normalize(keys, dim=-1)
    found = energy(unit @ unit.transpose(1, 2), margin)
    for row, own in zip(found, keys, strict=True):
        assert row.tolist() == pytest.approx(literal_energies(own, margin), abs=1e-5)
    assert (found[:, :4].mean(1) > found[:, 4:].mean(1)).all()


@pytest.mark.parametrize(("patches", "merged"), [(9, 3), (9, 4), (8, 4), (8, 1)])
@pytest.mark.parametrize("margin", [0.9, 0.3])
@pytest.mark.parametrize("protect", [True, False])
def test_matching_equals_the_papers_algorithm_image_by_image(patches, merged, margin, protect):
    keys = torch.randn(3, patches, 4)
    sources, targets, stays = by_energy(keys, merged, margin, protect)
    for row, own in enumerate(keys):
        merging, order = literal_matching(own, merged, margin, protect)
        assert dict(zip(sources[row].tolist(), targets[row].tolist(), strict=True)) == merging
        assert stays[row].tolist() == order


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.6, 0.5, 0.4])
def test_every_block_keeps_the_same_share_at_the_macs_of_dropping(keep):
    sizes = {"img_size": 96, "patch_size": 8, "embed_dim": 16, "depth": 12, "num_heads": 2, "num_classes": 0}
    tower, reference = as_tower(timm.create_model("vit_base_patch16_224", **sizes).eval()), Schedule({3: keep})
    schedule = pitome_schedule(tower, reference)
    counts = [144, *schedule.kept(144).values()]
    assert len(counts) == 13
    lowest = max(((count - 0.5) / 144) ** (1 / block) for block, count in enumerate(counts[1:], 1))
    highest = min(((count + 0.5) / 144) ** (1 / block) for block, count in enumerate(counts[1:], 1))
    assert lowest < highest  # one ratio, rounded to whole patches in every block
    aim = analytic_macs(tower, 0, reference)
    assert abs(analytic_macs(tower, 0, schedule, inside=True) - aim) < 0.002 * aim


@torch.inference_mode()
def test_it_merges_inside_blocks_with_a_margin_that_falls_and_protects_in_the_second_half(case):
    """Image by image, with the halves of a block and proportional attention."""
    tower, schedule = case.tower, pitome_schedule(case.tower, Schedule({1: 0.5}))
    prefix, counts = tower.num_prefix_tokens, schedule.kept(tower.num_patches)
    tokens = tower.embed(case.pixels)
    found = PiToMe().encode(tower, tokens, schedule)
    for feature, own in zip(found, tokens, strict=True):
        sizes, places = torch.ones(len(own)), torch.arange(tower.num_patches)
        for block in range(5):
            attended = tower.attend(own[None], block, sizes.log()[None], places[None])
            own, keys = attended.tokens[0], attended.keys[0].mean(0)[prefix:]
            merging, stays = literal_matching(keys, len(keys) - counts[block], 0.9 - 0.9 * block / 5, block >= 3)
            places = places[list(stays)]
            groups = [[token] for token in range(prefix)]
            groups += [[prefix + p, *(prefix + a for a, into in merging.items() if into == p)] for p in stays]
            means = [sum(sizes[i] * own[i] for i in group) / sizes[group].sum() for group in groups]
            own, sizes = torch.stack(means), torch.stack([sizes[group].sum() for group in groups])
            own = tower.feed_forward(own[None], block)[0]
        expected = tower.pool(own[None], gates=sizes[None, prefix:])[0]
        torch.testing.assert_close(feature, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_it_costs_what_the_formula_says_and_the_similarities(tower):
    encoding = PiToMe().at(tower, Schedule({2: 0.5}), 0)
    assert encoding.inside
    counts = [16, *encoding.schedule.kept(16).values()]
    similarities = sum(before**2 * 16 for before, after in pairwise(counts) if after < before)
    found = count_macs(encoding, torch.randn(2, 3, 32, 32))
    assert found == analytic_macs(tower, 24, encoding.schedule, inside=True) + similarities
