from __future__ import annotations

import open_clip
import pytest
import timm
import torch
from torch import nn

from patchranking.errors import UserError
from patchranking.towers import as_tower
from patchranking.towers.base import masked, weighted


@torch.no_grad()
def sharpened(model, tower):
    """Makes attention far from even, as it is in trained models, and calculates in double precision."""
    for name, weight in model.double().named_parameters():
        if name.endswith(("gamma", "gamma_1", "gamma_2", "ls1", "ls2")):
            weight.fill_(1.0)
        elif weight.ndim == 2 and "pos" not in name:
            weight.mul_(5)
    return tower


@torch.inference_mode()
def test_a_bias_of_log_2_towards_a_token_equals_that_token_twice(case):
    """In every block, in every head, and for every image its own token."""
    tower = sharpened(case.model, case.tower)
    tokens = tower.embed(case.pixels.double())
    first, prefix = tower.num_prefix_tokens if tower.rotary else 0, tower.num_prefix_tokens
    twice = first + torch.randperm(tokens.shape[1] - first)[: len(tokens)]
    positions = torch.arange(tower.num_patches).expand(len(tokens), -1)
    positions = torch.cat([positions, twice[:, None] - prefix], 1)
    images = torch.arange(len(tokens))
    bias = torch.zeros(tokens.shape[:2], dtype=torch.float64)
    bias[images, twice] = torch.tensor(2.0).double().log()
    found = tower.run(tokens, 1, 4, bias)
    doubled = torch.cat([tokens, tokens[images, twice][:, None]], 1)
    expected = tower.run(doubled, 1, 4, positions=positions)[:, :-1]
    torch.testing.assert_close(found, expected)
    assert (found - tower.run(tokens, 1, 4)).abs().max() > 1e-2


@torch.inference_mode()
def test_a_bias_of_zero_changes_nothing(case):
    tokens = case.tower.embed(case.pixels)
    found = case.tower.run(tokens, 0, key_bias=torch.zeros(tokens.shape[:2]))
    torch.testing.assert_close(found, case.tower.run(tokens, 0))


def gates_and_repetition(tower, pixels):
    """Features under gates that are whole numbers, and those of every patch as often as its gate says."""
    prefix, tokens = tower.num_prefix_tokens, tower.run(tower.embed(pixels), 0)
    times = torch.zeros(tower.num_patches, dtype=torch.long)
    times[:6] = torch.tensor([1, 1, 2, 3, 1, 2])
    times = torch.stack([times[torch.randperm(len(times))] for _ in tokens])
    repeated = [
        torch.cat([row[:prefix], row[prefix:].repeat_interleave(often, 0)])
        for row, often in zip(tokens, times, strict=True)
    ]
    return tower.pool(tokens, times.double()), tower.pool(torch.stack(repeated))


@torch.inference_mode()
def test_gates_pool_as_if_every_patch_came_as_often_as_its_gate_says(case):
    """A patch of gate 0 is not there, one of gate 3 is there three times; prefix tokens come once."""
    tower, pixels = sharpened(case.model, case.tower), case.pixels.double()
    found, expected = gates_and_repetition(tower, pixels)
    torch.testing.assert_close(found, expected)
    tokens = tower.run(tower.embed(pixels), 0)
    ones = torch.ones(len(tokens), tower.num_patches, dtype=torch.float64)
    torch.testing.assert_close(tower.pool(tokens, ones), tower.pool(tokens))


def small_timm(**changes):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_base_patch16_224", pretrained=False, **{**sizes, **changes}).eval()


def small_open_clip(**vision):
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    return open_clip.CLIP(32, {**sizes, **vision}, text).eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    "make",
    [
        lambda: small_open_clip(pool_type="avg", final_ln_after_pool=True),
        lambda: small_timm(global_pool="avg", reg_tokens=3),
        lambda: small_timm(global_pool="avg", fc_norm=True),
        lambda: small_timm(global_pool="map"),
        lambda: small_timm(global_pool="map", pool_include_prefix=True, reg_tokens=2),
    ],
)
def test_gates_agree_with_every_place_of_the_norm_and_any_prefix(make):
    model = make()
    tower = sharpened(model, as_tower(model))
    found, expected = gates_and_repetition(tower, torch.randn(3, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_gates_can_be_checked_before_any_work(case):
    case.tower.check_gates()


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_timm(global_pool="max"),
        lambda: small_timm(global_pool="avg", pool_include_prefix=True),
        lambda: small_open_clip(attentional_pool="parallel", attn_pooler_queries=4, attn_pooler_heads=2),
    ],
)
def test_a_pooling_that_cannot_be_gated_is_refused_and_works_without_gates(make):
    tower = as_tower(make())
    with pytest.raises(UserError, match=r"cannot be gated: rank with the leave-out .* --objective imitate"):
        tower.check_gates()
    assert tower(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_pooling_attention_with_places_of_its_own_cannot_be_gated():
    model = small_timm(global_pool="map", class_token=False)
    model.attn_pool.pos_embed = nn.Parameter(torch.zeros(16, 32))
    with pytest.raises(UserError, match="cannot be gated"):
        as_tower(model).check_gates()


def test_models_of_open_clip_with_the_batch_second_are_refused():
    model = small_open_clip()
    model.visual.transformer.batch_first = False
    with pytest.raises(UserError, match="batch_first=True"):
        as_tower(model)


@torch.no_grad()
def test_patches_are_dropped_in_training_as_timm_does():
    model = small_timm(patch_drop_rate=0.5, class_token=False, global_pool="avg").train()
    assert as_tower(model).embed(torch.randn(2, 3, 32, 32)).shape == (2, 8, 32)


def test_weighted_tokens_have_the_weighted_mean_as_their_mean():
    tokens, gates = torch.randn(2, 3 + 4, 5), torch.tensor([[1.0, 0, 0, 3], [2, 2, 2, 2]])
    found = weighted(tokens, gates)
    assert torch.equal(found[:, :3], tokens[:, :3])
    torch.testing.assert_close(found[0, 3:].mean(0), (tokens[0, 3] + 3 * tokens[0, 6]) / 4)
    torch.testing.assert_close(found[1], tokens[1])


def test_a_masked_attention_hides_keys_of_gate_0_inside_the_block_only():
    attention, tokens = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 3, 8)
    before = attention(tokens, tokens, tokens)[0]
    with masked(attention, torch.tensor([[1.0, 0, 1], [1, 1, 0]]), (2, 3)):
        found = attention(tokens, tokens, tokens)[0]
    assert torch.equal(attention(tokens, tokens, tokens)[0], before)
    for row, left in enumerate(([0, 2], [0, 1])):
        keys = tokens[row : row + 1, left]
        torch.testing.assert_close(found[row], attention(tokens[row : row + 1], keys, keys)[0][0])


def test_an_error_under_a_mask_removes_it():
    attention, tokens = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 3, 8)
    before = attention(tokens, tokens, tokens)[0]
    with pytest.raises(ZeroDivisionError), masked(attention, torch.tensor([[1.0, 0, 1]]), (2, 3)):
        raise ZeroDivisionError
    assert torch.equal(attention(tokens, tokens, tokens)[0], before)


@torch.inference_mode()
def test_patches_are_counted_row_by_row_after_the_prefix_tokens(case):
    tower, (rows, columns) = case.tower, case.tower.grid
    before = tower.embed(case.pixels)
    height, width = tower.image_size[0] // rows, tower.image_size[1] // columns
    for row, column in ((0, 1), (1, 0), (rows - 1, columns - 1)):
        pixels = case.pixels.clone()
        pixels[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width] += 1
        changed = (tower.embed(pixels) - before).abs().amax((0, 2)) > 1e-6
        assert changed.nonzero().flatten().tolist() == [tower.num_prefix_tokens + row * columns + column]


@torch.no_grad()
def test_position_embeddings_of_patches_come_last(case):
    tower = case.tower
    if tower.position_embedding is None:
        assert tower.rotary
        return
    before = tower.embed(case.pixels)
    for patch in (0, 5, tower.num_patches - 1):
        tower.position_embedding[..., patch - tower.num_patches, 0] += 1
        changed = (tower.embed(case.pixels) - before).abs().amax((0, 2)) > 1e-6
        assert changed.nonzero().flatten().tolist() == [tower.num_prefix_tokens + patch]
        tower.position_embedding[..., patch - tower.num_patches, 0] -= 1


def test_a_tower_says_the_sizes_of_its_model(case):
    tower = case.tower
    assert tower.image_size == tuple(case.pixels.shape[2:])
    assert tower.grid == (tower.image_size[0] // 8, tower.image_size[1] // 8)
    assert tower.num_patches == tower.grid[0] * tower.grid[1]
    assert (tower.width, tower.num_heads, tower.depth) == (32, 2, 5)
    weights = [weight for weight in tower.blocks[0].mlp.parameters() if weight.ndim == 2]
    assert tower.mlp_width == weights[-1].shape[1]
    assert tower.mlp_layers == sum(weight.numel() for weight in weights) / weights[-1].numel()
    assert tower.has_class_token is (tower.num_prefix_tokens > 0)
    assert tower.dtype == torch.float32
    assert as_tower(case.model.half()).dtype == torch.float16
    assert tower.device == torch.device("cpu")


def test_registers_are_prefix_tokens_and_no_class_token():
    tower = as_tower(small_timm(class_token=False, reg_tokens=3, global_pool="avg"))
    assert (tower.num_prefix_tokens, tower.has_class_token) == (3, False)
    with pytest.raises(UserError, match="Class attention needs a class token, and this model has none"):
        tower.class_attention(tower.embed(torch.randn(1, 3, 32, 32)), 0)
