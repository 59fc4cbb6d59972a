from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from patchranking.pruning.attach import Reduced, attach_reductions, run_reduced
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.pruning.stages import by_scores


def first_channel(tower):
    return lambda tokens: tokens[:, tower.num_prefix_tokens :, 0]


def attached(tower, schedule):
    return attach_reductions(tower, by_scores(tower, schedule, {schedule.block: first_channel(tower)}))


@torch.inference_mode()
def test_keep_all_and_detached_are_bit_identical_and_keys_stay(case):
    tower = case.tower
    dense = case.encode(case.pixels)
    keys = list(case.model.state_dict())
    with attached(tower, Schedule({3: 1.0})):
        assert torch.equal(case.encode(case.pixels), dense)
        assert list(case.model.state_dict()) == keys
    with attached(tower, Schedule({3: 0.5})):
        assert not torch.equal(case.encode(case.pixels), dense)
        assert list(case.model.state_dict()) == keys
    assert torch.equal(case.encode(case.pixels), dense)
    assert list(case.model.state_dict()) == keys


@torch.inference_mode()
def test_the_hook_equals_gathering_by_hand(case):
    tower, rate = case.tower, 0.5
    for block in (0, 3, 4):
        tokens = tower.embed(case.pixels, block)
        chosen = top_patches(first_channel(tower)(tokens), round(rate * tower.num_patches))
        pruned = tower.run(gather_tokens(tokens, chosen, tower.num_prefix_tokens), block, positions=chosen)
        expected = tower.pool(pruned)
        with attached(tower, Schedule({block: rate})):
            assert torch.equal(case.encode(case.pixels), expected)


@torch.inference_mode()
@pytest.mark.parametrize("block", [0, 3, 4])
def test_dropping_patches_equals_hiding_them_from_every_later_block(case, block):
    """Patches that no other token may attend to leave the class token, the registers and the kept patches alone."""
    tower, prefix = case.tower, case.tower.num_prefix_tokens
    tokens = tower.embed(case.pixels, block)
    chosen = torch.stack([torch.randperm(tower.num_patches)[:5] for _ in tokens])
    gates = torch.zeros(len(tokens), tower.num_patches).scatter(1, chosen, 1.0)
    bias = torch.nn.functional.pad(gates.log(), (prefix, 0), value=0.0)
    assert bias.isneginf().sum() == len(tokens) * (tower.num_patches - 5)

    hidden = tower.run(tokens, block, key_bias=bias)
    dropped = {block: lambda seen, sizes: Reduced(gather_tokens(seen, chosen, prefix), chosen)}
    with attach_reductions(tower, dropped):
        features = case.encode(case.pixels)
    pruned = tower.run(gather_tokens(tokens, chosen, prefix), block, positions=chosen)
    torch.testing.assert_close(gather_tokens(hidden, chosen, prefix), pruned, rtol=1e-5, atol=1e-5)
    difference, effect = tower.pool(hidden, gates) - features, case.encode(case.pixels) - features
    assert difference.abs().max() < 0.01 * effect.abs().max()


@torch.inference_mode()
def test_the_hook_survives_autocast_and_training_mode(tower):
    pixels = torch.randn(2, 3, 32, 32)
    tower.module.train()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = tower.embed(pixels, 3)
        chosen = top_patches(first_channel(tower)(tokens), 8)
        expected = tower.pool(tower.run(gather_tokens(tokens, chosen, 1), 3))
        with attached(tower, Schedule({3: 0.5})):
            found = tower(pixels)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_a_reduction_after_the_last_block_gets_its_output(case):
    tower, prefix = case.tower, case.tower.num_prefix_tokens
    tokens = tower.run(tower.embed(case.pixels), 0)
    seen = []
    with attach_reductions(
        tower, {tower.depth: lambda tokens, sizes: seen.append(tokens) or Reduced(tokens[:, : prefix + 4] * 2)}
    ):
        assert torch.equal(case.encode(case.pixels), tower.pool(tokens[:, : prefix + 4] * 2))
    assert torch.equal(seen[0], tokens)
    assert torch.equal(case.encode(case.pixels), tower.pool(tokens))


@torch.inference_mode()
def test_a_block_keeps_its_other_arguments(tower):
    pixels, bias = torch.randn(2, 3, 32, 32), torch.randn(2, 17)
    with attach_reductions(tower, {2: lambda tokens, sizes: Reduced(tokens.flip(0))}):
        found = tower.run(tower.embed(pixels), 0, key_bias=bias)
    between = tower.run(tower.embed(pixels), 0, 2, bias)
    assert torch.equal(found, tower.run(between.flip(0), 2, key_bias=bias))


@torch.inference_mode()
def test_two_scored_stages_and_a_cut_equal_a_search_by_hand_in_every_image(case):
    """Each stage keeps its share of all patches: the best by its own scores of those that are still there."""
    tower, prefix = case.tower, case.tower.num_prefix_tokens
    schedule = Schedule({1: 0.75, 2: 0.6, 4: 0.3})
    scorers = {block: lambda tokens, block=block: -tokens[:, prefix:, block] for block in (1, 2)}

    def keep(tokens, places, kept, channel):
        """Patches left of one image: all are sorted, those of no rank are gone."""
        scores = {place: tokens[prefix + at, channel].item() for at, place in enumerate(places)}
        best = sorted(places, key=lambda place: scores[place])[:kept]
        return [place for place in (best if channel == 2 else places) if place in best]

    expected, left = [], []
    for tokens in tower.embed(case.pixels, 1).split(1):
        places = [*range(tower.num_patches)]
        for block, rate in ((1, 0.75), (2, 0.6)):
            now = keep(tokens[0], places, round(rate * tower.num_patches), block)
            tokens = torch.cat([tokens[:, :prefix], tokens[:, [prefix + places.index(place) for place in now]]], 1)
            places = now
            tokens = tower.run(tokens, block, 2 if block == 1 else 4, positions=torch.tensor([places]))
        last = round(0.3 * tower.num_patches)
        left.append(places[:last])
        expected.append(tower.pool(tower.run(tokens[:, : prefix + last], 4, positions=torch.tensor([places[:last]]))))
    reductions = by_scores(tower, schedule, scorers)
    with attach_reductions(tower, reductions):
        found = case.encode(case.pixels)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-6)
    tokens, keep_indices, sizes = run_reduced(tower, tower.embed(case.pixels), 0, reductions)
    assert torch.equal(tower.pool(tokens), found)
    assert keep_indices.tolist() == left
    assert sizes is None


@torch.inference_mode()
@pytest.mark.parametrize("stages", [(0, 2), (1, 4), (3, 3)])
def test_a_token_of_some_size_counts_as_that_many_tokens(case, stages):
    """Integer sizes equal copies, from the block on where they came, through a second stage that drops some."""
    case.model.double()
    tower, prefix, pixels = case.tower, case.tower.num_prefix_tokens, case.pixels.double()
    if hasattr(tower, "_projection"):
        tower._projection.double()
    first, second = stages
    copies = torch.randint(1, 6, (len(pixels), prefix + tower.num_patches))
    if tower.rotary:
        copies[:, :prefix] = 1  # only patches have places
    places = torch.arange(tower.num_patches)

    def grow(tokens, sizes):
        assert sizes is None
        return Reduced(3 * tokens, None, copies.double())

    def cut(tokens, sizes):
        return Reduced(tokens[:, :-4], places[:-4].expand(len(tokens), -1), sizes[:, :-4])

    def both(tokens, sizes):
        return cut(*grow(tokens, sizes)[::2])

    def run(tokens, often, start, stop):
        patches = torch.cat([torch.arange(-prefix, 0), places])[: len(often)].repeat_interleave(often)[None]
        return tower.run(tokens, start, stop, positions=patches[:, prefix:])

    reductions = {first: grow, second: cut} if first < second else {first: both}
    rows = []
    for tokens, often in zip(tower.embed(pixels, first).split(1), copies, strict=True):
        tokens = run(3 * tokens.repeat_interleave(often, 1), often, first, second)
        tokens, often = tokens[:, : often[:-4].sum()], often[:-4]
        rows.append(run(tokens, often, second, None)[:, often.cumsum(0) - 1])
    expected = tower.pool(torch.cat(rows))
    with attach_reductions(tower, reductions, sized=True):
        torch.testing.assert_close(case.encode(pixels), expected)
    found = run_reduced(tower, tower.embed(pixels), 0, reductions)
    torch.testing.assert_close(tower.pool(found.tokens), expected)
    assert torch.equal(found.sizes, copies[:, :-4].double())
    with attach_reductions(tower, reductions):
        assert tower.rotary or (case.encode(pixels) - expected).abs().max() > 1e-6


@torch.inference_mode()
def test_the_sizes_of_one_batch_are_not_those_of_the_next(tower):
    pixels, grown = torch.randn(2, 3, 32, 32), [torch.full((2, 17), 2.0), None]
    dense = tower(pixels)
    sizes = []

    def see(tokens, own):
        sizes.append(own)
        return Reduced(tokens, None, own)

    with attach_reductions(tower, {1: lambda tokens, own: Reduced(tokens, None, grown.pop(0)), 3: see}, sized=True):
        tower(pixels)
        assert torch.equal(tower(pixels), dense)
    assert torch.equal(sizes[0], torch.full((2, 17), 2.0))
    assert sizes[1] is None


def test_two_threads_may_encode_at_once(tower):
    """Both wait for each other between the stage that merges and a later one."""
    prefix = tower.num_prefix_tokens

    def grow(tokens, sizes):
        sizes = 1 + tokens[..., 0].abs() * 9
        return Reduced(tokens[:, : prefix + 8], None, sizes[:, : prefix + 8])

    def cut(tokens, sizes):
        return Reduced(tokens[:, : prefix + 4], None, sizes[:, : prefix + 4])

    batches = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 32, 32)]

    def encode(pixels):
        with torch.inference_mode():
            return tower(pixels)

    with attach_reductions(tower, {1: grow, 3: cut}, sized=True), ThreadPoolExecutor(2) as pool:
        alone = [encode(pixels) for pixels in batches]
        meet = Barrier(2, timeout=10)
        for block in (1, 2, 3, 4):
            tower.blocks[block].register_forward_pre_hook(lambda *_: meet.wait() * 0 or None)
        for _ in range(3):
            found = list(pool.map(encode, batches))
            assert all(torch.equal(own, expected) for own, expected in zip(found, alone, strict=True))
