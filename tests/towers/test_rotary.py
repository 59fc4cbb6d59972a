from __future__ import annotations

import copy

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.prompts.insert import with_visual_tokens
from patchranking.pruning.attach import Reduced, attach_reductions, run_reduced
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.pruning.stages import by_scores
from patchranking.towers import as_tower
from patchranking.towers.rotary import waves_at


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (3, 1, 5, 4)])
def test_waves_go_with_their_patches_and_what_has_no_place_stays_still(shape):
    waves, positions = torch.randn(shape), torch.tensor([[4, 0], [1, 1], [3, 2]])
    found = waves_at(waves, positions, 3, 1.0)
    assert found.shape == (3, shape[-3] if len(shape) == 3 else 1, 3, 4)
    every = waves.expand(3, found.shape[1], 5, 4)
    for image, (first, second) in enumerate(positions.tolist()):
        rows = every[image]
        expected = torch.stack([torch.ones_like(rows[:, 0]), rows[:, first], rows[:, second]], 1)
        assert torch.equal(found[image], expected)


def test_waves_of_all_patches_in_order_pass_and_fewer_tokens_than_places_are_an_error():
    waves = torch.randn(5, 4)
    assert waves_at(waves, None, 5, 0.0) is waves
    assert torch.equal(waves_at(waves, None, 6, 0.0), torch.cat([torch.zeros(1, 4), waves]))
    with pytest.raises(ValueError, match="5 places for 4 tokens"):
        waves_at(waves, None, 4, 0.0)


@torch.inference_mode()
@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stages=st.dictionaries(st.integers(0, 4), st.floats(0.05, 1.0), min_size=1, max_size=3),
    again=st.booleans(),
    seed=st.integers(0, 9),
)
def test_pruned_equals_the_same_model_with_the_dropped_patches_masked(case, stages, again, seed):
    """At any schedule, by hooks and block by block: no token attends to a patch from the block on that drops it."""
    torch.manual_seed(seed)
    tower, prefix = case.tower, case.tower.num_prefix_tokens
    rates = sorted(stages.values(), reverse=True)
    schedule = Schedule(dict(zip(sorted(stages), rates, strict=True)))
    scores = torch.randn(len(case.pixels), tower.num_patches)
    places = torch.arange(tower.num_patches).expand_as(scores)
    gates, tokens = torch.ones_like(scores), tower.embed(case.pixels)
    alive, expected, drops = places, tokens, {}
    for block in range(tower.depth):
        if block in schedule.stages:
            best = scores.gather(1, alive).argsort(dim=1, descending=True)[:, : schedule.kept(tower.num_patches)[block]]
            drops[block] = best.sort(1).values if again else best
            alive = alive.gather(1, drops[block])
            gates = torch.zeros_like(scores).scatter(1, alive, 1.0)
        bias = F.pad(gates.log(), (prefix, 0)) if not gates.all() else None
        expected = tower.run(expected, block, block + 1, bias)
    reductions = {
        block: lambda tokens, sizes, chosen=chosen: Reduced(gather_tokens(tokens, chosen, prefix), chosen)
        for block, chosen in drops.items()
    }
    found = run_reduced(tower, tokens, 0, reductions)
    assert torch.equal(found.keep_indices, alive)
    torch.testing.assert_close(found.tokens, gather_tokens(expected, alive, prefix), rtol=1e-5, atol=1e-5)
    with attach_reductions(tower, reductions):
        assert torch.equal(case.encode(case.pixels), tower.pool(found.tokens))


@torch.inference_mode()
def test_where_a_patch_is_from_matters(rotary_case):
    case, tower, chosen = rotary_case, rotary_case.tower, torch.tensor([[9, 2, 14]] * 3)
    tokens = gather_tokens(tower.embed(case.pixels), chosen, tower.num_prefix_tokens)
    right = tower.run(tokens, 0, positions=chosen)
    for wrong in (chosen.flip(1), torch.arange(3).expand(3, -1)):
        assert (tower.run(tokens, 0, positions=wrong) - right).abs().max() > 1e-4


@torch.inference_mode()
def test_fewer_patches_without_their_positions_are_an_error(rotary_case):
    tower = rotary_case.tower
    with pytest.raises(UserError, match="rotates 16 patches"):
        tower.run(tower.embed(rotary_case.pixels)[:, :-1], 0)


@torch.inference_mode()
def test_visual_tokens_are_not_rotated(rotary_case):
    """They run beside the patches like prefix tokens, at keep 1 and where patches go in two stages."""
    case, tower, prefix = rotary_case, rotary_case.tower, rotary_case.tower.num_prefix_tokens
    visual = torch.randn(1, 2, tower.width)
    for schedule in (Schedule({1: 1.0}), Schedule({1: 0.75, 3: 0.5})):
        steps = by_scores(tower, schedule, {1: lambda tokens: tokens[:, prefix:, 0]})
        steps = with_visual_tokens(visual, steps, prefix, tower.depth)
        with attach_reductions(tower, steps):
            found = case.encode(case.pixels)
        longer = copy.deepcopy(case.model)
        for part in longer.modules():  # a model of more prefix tokens
            if hasattr(part, "num_prefix_tokens"):
                part.num_prefix_tokens = prefix + 2
            elif hasattr(part, "rope_embeddings"):
                part.config.num_register_tokens += 2
        like = as_tower(longer)
        tokens = tower.embed(case.pixels)
        tokens = torch.cat([tokens[:, :prefix], visual.expand(3, -1, -1), tokens[:, prefix:]], 1)
        steps = by_scores(like, schedule, {1: lambda tokens: tokens[:, prefix + 2 :, 0]})
        tokens = run_reduced(like, tokens, 0, steps).tokens
        tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix + 2 :]], 1)
        torch.testing.assert_close(found, tower.pool(tokens), rtol=0, atol=1e-5)


def test_what_is_read_beside_the_model_needs_images_of_its_own_size():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    tower = as_tower(timm.create_model("vit_small_patch16_dinov3", **sizes, dynamic_img_size=True).eval())
    for read in (tower.attend, tower.class_attention, lambda tokens, _: tower(torch.randn(1, 3, 48, 40))):
        with pytest.raises(UserError, match="rotates 16 patches by their places, and 30 came: give it images of its"):
            read(torch.randn(1, 35, 32), 0)


@torch.inference_mode()
def test_other_image_sizes_take_the_rotations_that_the_library_gives():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_small_patch16_dinov3", **sizes, dynamic_img_size=True).eval()
    tower, pixels, prefix = as_tower(model), torch.randn(2, 3, 48, 40), 5
    chosen, seen = torch.tensor([[29, 3, 11]] * 2), []
    model.blocks[1].register_forward_pre_hook(
        lambda _, args, given: seen.append((args[0], given["rope"])), with_kwargs=True
    )
    model(pixels)
    tokens, rope = seen.pop()
    expected = gather_tokens(tokens, chosen, prefix)
    for block in model.blocks[1:]:
        given = tower.turns_at({"rope": rope}, expected, chosen)
        expected = block(expected, **given)
    with attach_reductions(tower, {1: lambda tokens, sizes: Reduced(gather_tokens(tokens, chosen, prefix), chosen)}):
        assert torch.equal(model(pixels), tower.pool(expected))
