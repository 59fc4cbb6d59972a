from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchranking.errors import UserError
from patchranking.pruning.attach import attach_reductions, run_reduced
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import dropping, staged

PREFIX, PATCHES = 1, 16


def channel(number):
    return dropping(lambda tokens: tokens[:, PREFIX:, number], PREFIX)


def numbered(seed=0):
    """Tokens with random scores in channels 0 and 1, and the number of the patch in channel 2."""
    tokens = torch.rand(3, PREFIX + PATCHES, 3, generator=torch.Generator().manual_seed(seed))
    tokens[..., 2] = torch.arange(PREFIX + PATCHES) - PREFIX
    return tokens


class NoBlocks:
    """A tower of any depth whose blocks do nothing."""

    def run(self, tokens, start, stop=None, key_bias=None, positions=None):
        return tokens


@given(
    st.lists(st.integers(1, PATCHES), min_size=1, max_size=4),
    st.sets(st.integers(1, 3)),
    st.integers(0, 99),
)
def test_what_stays_and_what_is_told_equal_a_search_by_hand(counts, again, seed):
    counts = sorted(counts, reverse=True)
    schedule = Schedule({block: count / PATCHES for block, count in enumerate(counts)})
    drops = {0: channel(0)} | {block: channel(block % 2) for block in again if block < len(counts)}
    tokens = numbered(seed)
    sizes = numbered(seed + 1)[..., 0] + 1
    reductions = staged(lambda: schedule, PATCHES, PREFIX, drops)
    first = reductions[0]
    reductions[0] = lambda tokens, _: first(tokens, sizes)
    kept, keep_indices, kept_sizes = run_reduced(NoBlocks(), tokens, 0, reductions)
    for row in range(len(tokens)):
        scores, left = tokens[row, PREFIX:], list(range(PATCHES))
        by = 0
        for block, count in enumerate(counts):
            by = block % 2 if block in drops else by
            left = sorted(left, key=lambda patch, by=by: -scores[patch, by].item())[:count]
        found = kept[row, PREFIX:, 2].int().tolist()
        assert torch.equal(kept_sizes[row], sizes[row, [0, *(PREFIX + patch for patch in found)]])
        assert sorted(found) == sorted(left)
        if schedule.keep < 1:
            assert keep_indices[row].tolist() == found
        else:
            assert keep_indices is None
    assert torch.equal(kept[:, :PREFIX], tokens[:, :PREFIX])


def test_patches_keep_their_places_where_the_next_stage_scores_again_and_go_in_order_where_it_cuts():
    tokens, schedule = numbered(), Schedule({0: 0.75, 1: 0.5})
    again = staged(lambda: schedule, PATCHES, PREFIX, {0: channel(0), 1: channel(1)})
    cut = staged(lambda: schedule, PATCHES, PREFIX, {0: channel(0)})
    assert (again[0](tokens, None).tokens[:, PREFIX:, 2].diff(dim=1) > 0).all()
    assert (cut[0](tokens, None).tokens[:, PREFIX:, 0].diff(dim=1) <= 0).all()


def test_the_schedule_is_asked_at_every_call_and_at_1_tokens_pass_as_they_are():
    schedules, tokens = [Schedule({0: 1.0}), Schedule({0: 0.5})], numbered()
    reduce = staged(lambda: schedules[0], PATCHES, PREFIX, {0: channel(0)})[0]
    assert reduce(tokens, None).tokens is tokens
    del schedules[0]
    assert reduce(tokens, None).tokens.shape[1] == PREFIX + 8


def test_another_number_of_patches_is_refused():
    reduce = staged(lambda: Schedule({0: 0.5}), PATCHES, PREFIX, {0: channel(0)})[0]
    with pytest.raises(UserError, match="for 16 patches, not 15"):
        reduce(numbered()[:, :-1], None)


@torch.inference_mode()
def test_in_a_running_model_stages_equal_gathering_by_hand(case):
    tower = case.tower
    prefix, patches = tower.num_prefix_tokens, tower.num_patches
    schedule = Schedule({1: 0.75, 3: 0.5})
    first = dropping(lambda tokens: tokens[:, prefix:, 0], prefix)
    tokens = tower.embed(case.pixels, 1)
    order = tokens[:, prefix:, 0].argsort(dim=1, descending=True, stable=True)
    most, half = schedule.kept(patches).values()
    index = (order[:, :most] + prefix).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    kept = tower.run(torch.cat([tokens[:, :prefix], tokens.gather(1, index)], 1), 1, 3, positions=order[:, :most])
    expected = tower.pool(tower.run(kept[:, : prefix + half], 3, positions=order[:, :half]))
    with attach_reductions(tower, staged(lambda: schedule, patches, prefix, {1: first})):
        assert torch.equal(case.encode(case.pixels), expected)
