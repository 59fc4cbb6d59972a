from __future__ import annotations

import pytest
import torch

from patchranking.methods import METHODS, golden
from patchranking.methods.batch import Batch
from patchranking.methods.golden import golden_importance
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.ranking.sketched import sketched


@pytest.fixture
def searches(monkeypatch):
    """Images and block of every search."""
    found = []

    def search(tower, pixels, block, **options):
        found.append((len(pixels), block))
        return sketched(tower, pixels, block, **options)

    monkeypatch.setattr(golden, "sketched", search)
    return found


@torch.inference_mode()
@pytest.mark.parametrize("block", [1, 3])
def test_it_is_the_default_search_before_the_block_on_eight_images_at_a_time(tower, block, searches):
    pixels = torch.randn(11, 3, 32, 32)
    found = golden_importance(Batch(tower, pixels), block)
    assert searches == [(8, block), (3, block)]
    expected = [sketched(tower, part, block).importance for part in (pixels[:8], pixels[8:])]
    assert torch.equal(found, torch.cat(expected))


@torch.inference_mode()
def test_a_batch_is_searched_once_for_a_block_whatever_the_keep_rates(tower, searches):
    batch = Batch(tower, torch.randn(3, 3, 32, 32))
    for rate in (0.8, 0.4):
        METHODS["golden"].at(tower, Schedule({2: rate}), 0).run(batch)
    assert searches == [(3, 2)]
    METHODS["golden"].at(tower, Schedule({3: 0.5}), 0).run(batch)
    assert searches == [(3, 2), (3, 3)]


@torch.inference_mode()
def test_every_stage_goes_by_the_search_before_the_first(case):
    tower, schedule = case.tower, Schedule({1: 0.75, 3: 0.5})
    batch, prefix = Batch(tower, case.pixels), tower.num_prefix_tokens
    found = METHODS["golden"].at(tower, schedule, 0).run(batch)
    order = sketched(tower, case.pixels, 1).importance.argsort(1, descending=True)
    most, half = schedule.kept(tower.num_patches).values()
    tokens = gather_tokens(tower.embed(case.pixels, 1), order[:, :most], prefix)
    tokens = tower.run(tokens, 1, 3, positions=order[:, :most])[:, : prefix + half]
    assert torch.equal(found.features, tower.pool(tower.run(tokens, 3, positions=order[:, :half])))
    assert torch.equal(found.keep_indices, order[:, :half])


@torch.inference_mode()
def test_looking_up_beforehand_leaves_nothing_to_search(tower, searches):
    batch, encoding = Batch(tower, torch.randn(2, 3, 32, 32)), METHODS["golden"].at(tower, Schedule({3: 0.5}), 0)
    encoding.search(batch)
    assert searches == [(2, 3)]
    encoding.run(batch)
    assert searches == [(2, 3)]


@torch.inference_mode()
def test_the_seed_of_what_is_drawn_does_not_change_the_search(tower):
    pixels = torch.randn(2, 3, 32, 32)
    first, other = (METHODS["golden"].at(tower, Schedule({3: 0.5}), seed).run(Batch(tower, pixels)) for seed in (0, 1))
    assert torch.equal(first.keep_indices, other.keep_indices)
    assert torch.equal(first.keep_indices, top_patches(sketched(tower, pixels, 3).importance, 8))
