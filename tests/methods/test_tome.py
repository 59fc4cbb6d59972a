from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from torch.nn import functional as F

from patchranking.evaluation.cost import count_macs
from patchranking.methods.batch import Batch
from patchranking.methods.tome import ToMe, bipartite, tome_schedule
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.merge import merge
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower


@pytest.mark.parametrize(("patches", "kept"), [(9, 6), (9, 5), (8, 4), (8, 8)])
def test_merge_equals_the_loop_over_patches(patches, kept):
    tokens, metric = torch.randn(3, 2 + patches, 5), torch.randn(3, 2 + patches, 4)
    sizes = torch.randint(1, 4, (3, 2 + patches)).float()
    found, total = merge(tokens, sizes, bipartite(metric[:, 2:], patches - kept), 2)
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
    found = ToMe().encode(case.tower, case.tower.embed(case.pixels), Schedule({1: 1.0}))
    torch.testing.assert_close(found, case.tower(case.pixels), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_merging_twins_is_lossless(tower):
    """Proportional attention counts a merged token by its size, so equal tokens lose nothing."""
    tokens = tower.embed(torch.randn(2, 3, 32, 32), 1)
    tokens[:, 2::2] = tokens[:, 1::2]
    expected = tower.run(tokens, 1, 2)
    merged, sizes = merge(tokens, torch.ones(2, 17), bipartite(tokens[:, 1:], 8), 1)
    found = tower.run(merged, 1, 2, key_bias=sizes.log())
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5)


def merged_per_block(tower, schedule):
    counts = [tower.num_patches, *schedule.kept(tower.num_patches).values()]
    return [before - after for before, after in pairwise(counts)]


@pytest.fixture
def deep():
    """A tower with 12 x 12 patches and 12 blocks."""
    sizes = {"img_size": 96, "patch_size": 8, "embed_dim": 16, "depth": 12, "num_heads": 2, "num_classes": 0}
    return as_tower(timm.create_model("vit_base_patch16_224", pretrained=False, **sizes).eval())


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.6, 0.5, 0.4, 0.3])
def test_every_block_merges_r_and_some_one_more_at_the_macs_of_dropping(deep, keep):
    reference = Schedule.default(3, 12, keep)
    schedule = tome_schedule(deep, reference)
    merged = merged_per_block(deep, schedule)
    r, first = min(merged), merged.index(min(merged))
    assert sum(extra == r + 1 for extra in merged[first:]) <= 1
    assert merged == [r + 1 if extra > r else r for extra in merged]
    aim = analytic_macs(deep, 0, reference)
    assert abs(analytic_macs(deep, 0, schedule, inside=True) - aim) < 0.001 * aim


def test_no_block_merges_more_than_half(deep):
    schedule = tome_schedule(deep, Schedule({0: 0.02}))
    left = deep.num_patches
    for gone in merged_per_block(deep, schedule):
        assert gone == left // 2
        left -= gone


def literal_attention(tower, tokens, block, sizes, _):
    """A transformers block's attention with its residual (Eq. 1), for one image, and keys averaged over heads."""
    layer, (count, width) = tower.blocks[block], tokens.shape
    attention, normed = layer.self_attn, layer.layer_norm1(tokens)
    mixed, metric = [], torch.zeros(count, width // tower.num_heads)
    for head in torch.arange(width).chunk(tower.num_heads):
        query, key, value = (part(normed)[:, head] for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        logits = query @ key.T / len(head) ** 0.5 + sizes.log()
        mixed.append(logits.softmax(1) @ value)
        metric += key / tower.num_heads
    return tokens + attention.out_proj(torch.cat(mixed, 1)), metric


def literal_mlp(tower, tokens, block):
    layer = tower.blocks[block]
    return tokens + layer.mlp(layer.layer_norm2(tokens))


def halves_attention(tower, tokens, block, sizes, places):
    """The same by the halves of any tower."""
    attended = tower.attend(tokens[None], block, sizes.log()[None], places[None])
    return attended.tokens[0], attended.keys[0].mean(0)


def halves_mlp(tower, tokens, block):
    return tower.feed_forward(tokens[None], block)[0]


def literal_merge(tokens, sizes, metric, r, prefix):
    """Bipartite soft matching as section 3 tells it, token after token.

    Tokens alternate between A and B, with the class token in A, where no edge leaves it. Every token of A draws an edge
    to the most similar of B; the r most similar edges stay; tokens joined by them merge, weighted by size.
    """
    metric = F.normalize(metric, dim=-1)
    in_a = range(prefix + 1, len(tokens), 2)
    in_b = range(prefix, len(tokens), 2)
    edges = []
    for a in in_a:
        cosines = {b: (metric[a] @ metric[b]).item() for b in in_b}
        b = max(cosines, key=cosines.get)
        edges.append((cosines[b], a, b))
    merging = {a: b for _, a, b in sorted(edges, reverse=True)[:r]}
    groups = [[token] for token in (*range(prefix), *(a for a in in_a if a not in merging))]
    groups += [[b, *(a for a, into in merging.items() if into == b)] for b in in_b]
    mean = [sum(tokens[i] * sizes[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    stays = torch.tensor([group[0] - prefix for group in groups[prefix:]])
    return torch.stack(mean), torch.stack([sum(sizes[i] for i in group) for group in groups]), stays


def literal_tome(tower, tokens, numbers, attention, mlp):
    """ToMe on one image ``(tokens, width)``: attention, merging, MLP, in every block; numbers of patches to merge."""
    sizes, places = torch.ones(len(tokens)), torch.arange(tower.num_patches)
    for block, r in enumerate(numbers):
        tokens, metric = attention(tower, tokens, block, sizes, places)
        if r > 0:
            tokens, sizes, stays = literal_merge(tokens, sizes, metric, r, tower.num_prefix_tokens)
            places = places[stays]
        tokens = mlp(tower, tokens, block)
    assert sizes.sum() == tower.num_prefix_tokens + tower.num_patches
    return tower.pool(tokens[None], gates=sizes[None, tower.num_prefix_tokens :])[0]


@torch.inference_mode()
def test_it_equals_the_papers_algorithm_written_out_for_one_model(tower):
    tokens = sharpened(tower).embed(torch.randn(4, 3, 32, 32))
    for numbers in ([2, 2, 2, 2, 2], [3, 3, 2, 3, 2], [8, 4, 2, 1, 0]):
        left = [16 - sum(numbers[: block + 1]) for block in range(5)]
        found = ToMe().encode(tower, tokens, Schedule({block: count / 16 for block, count in enumerate(left)}))
        for row, own in enumerate(tokens):
            expected = literal_tome(tower, own, numbers, literal_attention, literal_mlp)
            torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def sharpened(tower):
    """Makes attention far from even, so that a token's size matters."""
    for layer in tower.blocks:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.weight.mul_(20)
            part.bias.normal_()
    return tower


@torch.inference_mode()
@pytest.mark.parametrize("kept", [{1: 0.75, 2: 0.5, 4: 0.3}, {0: 0.5, 3: 0.25}])
def test_every_tower_equals_the_papers_algorithm_image_by_image(case, kept):
    tower, counts = case.tower, Schedule(kept).kept(case.tower.num_patches)
    tokens = tower.embed(case.pixels)
    left = [counts.get(block, 0) or tower.num_patches for block in range(tower.depth)]
    left = [min(left[: block + 1]) for block in range(tower.depth)]
    numbers = [before - after for before, after in pairwise([tower.num_patches, *left])]
    found = ToMe().encode(tower, tokens, Schedule(kept))
    for row, own in enumerate(tokens):
        expected = literal_tome(tower, own, numbers, halves_attention, halves_mlp)
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_nothing_is_computed_twice(tower):
    """The counted MACs are those of the formula and of the similarities, by keys of one head's width."""
    schedule = tome_schedule(tower, Schedule({2: 0.5}))
    counts = [16, *schedule.kept(16).values()]
    similarities = sum((count // 2) * ((count + 1) // 2) * 16 for count, left in pairwise(counts) if left < count)
    found = count_macs(lambda pixels: ToMe().encode(tower, tower.embed(pixels), schedule), torch.randn(2, 3, 32, 32))
    assert found == analytic_macs(tower, 24, schedule, inside=True) + similarities


@torch.inference_mode()
def test_the_method_runs_its_schedule_inside_blocks(tower):
    pixels, reference = torch.randn(2, 3, 32, 32), Schedule({2: 0.5})
    encoding = ToMe().at(tower, reference, 0)
    assert encoding.schedule == tome_schedule(tower, reference)
    assert encoding.inside
    found = encoding.run(Batch(tower, pixels))
    assert torch.equal(found.features, ToMe().encode(tower, tower.embed(pixels), encoding.schedule))
    assert found.keep_indices is None
