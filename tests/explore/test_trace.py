from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from patchranking.explore.trace import Stage, first_ranking, some, traced
from patchranking.methods.batch import Batch
from patchranking.pruning.inside import run_inside


@pytest.fixture
def batch(explorer, noise):
    return Batch(explorer.model.tower, explorer.model.preprocess(noise.image(0))[None])


@torch.inference_mode()
@pytest.mark.parametrize("method", ["patchranking", "cls-attention"])
def test_stages_of_dropping_are_nested_and_end_with_what_is_kept(explorer, batch, method):
    entry = explorer.entry(method, 0.7)
    stages = traced(entry, batch)
    schedule = entry.encoding.schedule
    assert {stage.block: stage.count for stage in stages} == schedule.kept(16)
    for earlier, later in itertools.pairwise(stages):
        assert not (later.kept & ~earlier.kept).any()
    kept = entry.encoding.run(batch).keep_indices[0]
    assert sorted(kept.tolist()) == np.flatnonzero(stages[-1].kept).tolist()


@torch.inference_mode()
def test_sizes_of_tokens_count_the_patches_that_are_traced_into_them(explorer, batch):
    """ToMe counts by itself how many patches each token stands for."""
    entry, tower = explorer.entry("tome", 0.6), batch.tower
    stages, method, schedule = traced(entry, batch), entry.method, entry.encoding.schedule
    left = run_inside(tower, batch.entering(0), 0, method.reductions(tower, schedule))
    sizes = left.sizes[0, tower.num_prefix_tokens :].long().tolist()
    assert np.bincount(stages[-1].tokens.ravel()).tolist() == sizes
    assert max(sizes) > 1
    assert [stage.count for stage in stages] == list(schedule.kept(16).values())
    for earlier, later in itertools.pairwise(stages):
        for token in np.unique(earlier.tokens):
            assert len(np.unique(later.tokens[earlier.tokens == token])) == 1


@torch.inference_mode()
def test_evit_keeps_by_attention_and_what_it_fuses_does_not_come_back(explorer, batch):
    entry, tower = explorer.entry("evit", 0.6), batch.tower
    stages, schedule = traced(entry, batch), entry.encoding.schedule
    counts = schedule.kept(16)
    attention = tower.class_attention(batch.entering(schedule.block), schedule.block)
    assert torch.equal(first_ranking(entry, batch), attention)
    best = attention[0].argsort(descending=True)[: counts[schedule.block]]
    assert sorted(best.tolist()) == np.flatnonzero(stages[0].kept).tolist()
    for earlier, later in itertools.pairwise(stages):
        assert not (later.kept & ~earlier.kept).any()
        assert counts[later.block] - 1 <= later.count <= counts[later.block]  # an earlier fused token may be kept


def test_stages_to_show_are_few_change_something_and_end_with_the_last():
    def stage(count):
        return Stage(count, np.arange(16).clip(max=count - 1).reshape(4, 4))

    stages = [stage(count) for count in (16, 14, 14, 12, 10, 8, 6, 4, 2, 2)]
    assert [one.count for one in some(stages, 3)] == [12, 6, 2]
    assert [one.count for one in some(stages, 20)] == [14, 12, 10, 8, 6, 4, 2]
    assert [one.count for one in some([stage(16), stage(16)])] == [16]
    assert some([]) == []
