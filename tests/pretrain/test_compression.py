from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_patch_embed
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pretrain.compression import (
    Compression,
    check_compressible,
    encode,
    keep_some,
    patch_size_of,
    run_compressed,
)
from patchranking.towers import as_tower

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def noise_of(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda patches: torch.rand(batch, patches, generator=generator)


def twice_as_large(vit):
    """A tower for 64 x 64 pixels with the patch embedding of one for 32 x 32."""
    large = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL | {"img_size": 64})
    large.patch_embed.load_state_dict(vit.patch_embed.state_dict())
    return as_tower(large)


def embedded(tower, pixels, size):
    """Tokens before the position embedding: of the patches alone."""
    seen = []
    hook = tower.module.patch_embed.register_forward_hook(lambda module, inputs, tokens: seen.append(tokens))
    run_compressed(tower, pixels, Compression(size))
    hook.remove()
    return seen[0]


def test_the_base_size_is_bit_identical(vit, vit_tower):
    pixels = torch.randn(3, 3, 32, 32)
    assert patch_size_of(vit_tower) == 4
    assert torch.equal(encode(vit_tower, pixels, Compression(4)), vit(pixels))
    encode(vit_tower, pixels, Compression(8))
    assert torch.equal(encode(vit_tower, pixels, Compression(4)), vit(pixels))
    assert vit.patch_embed.proj.stride == (4, 4)


def test_the_base_size_is_bit_identical_in_every_library(one_of_each):
    base = Compression(patch_size_of(one_of_each.tower))
    assert torch.equal(encode(one_of_each.tower, one_of_each.pixels, base), one_of_each.encode(one_of_each.pixels))


def test_an_image_drawn_larger_gives_the_same_tokens_at_larger_patches(vit):
    """PI-resize is exact where every patch is drawn larger; plain resizing of the weights is far from it."""
    large = twice_as_large(vit)
    small = torch.randn(2, 3, 32, 32)
    patches = F.interpolate(F.unfold(small, 4, stride=4).mT.reshape(-1, 3, 4, 4), (8, 8), mode="bilinear")
    drawn = F.fold(patches.reshape(2, 64, -1).mT, (64, 64), 8, stride=8)
    expected = vit.patch_embed(small)
    torch.testing.assert_close(embedded(large, drawn, 8), expected, atol=1e-5, rtol=0)

    plain = F.interpolate(vit.patch_embed.proj.weight, (8, 8), mode="bilinear")
    wrong = F.conv2d(drawn, plain, vit.patch_embed.proj.bias, 8).flatten(2).mT
    assert (wrong - expected).norm() > expected.norm()


def test_a_constant_image_drawn_twice_as_large_gives_the_same_tokens(vit):
    large = twice_as_large(vit)
    constant = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32)
    drawn = F.interpolate(constant, (64, 64), mode="bilinear")
    torch.testing.assert_close(embedded(large, drawn, 8), vit.patch_embed(constant), atol=1e-5, rtol=0)
    plain = F.conv2d(drawn, F.interpolate(vit.patch_embed.proj.weight, (8, 8), mode="bilinear"), None, 8)
    assert (plain.flatten(2).mT + vit.patch_embed.proj.bias - vit.patch_embed(constant)).abs().max() > 1e-2


def test_the_weights_are_those_of_timm(vit, vit_tower):
    pixels = torch.randn(2, 3, 32, 32)
    weight = resample_patch_embed(vit.patch_embed.proj.weight, [8, 8], interpolation="bilinear")
    expected = F.conv2d(pixels, weight, vit.patch_embed.proj.bias, 8).flatten(2).mT
    torch.testing.assert_close(embedded(vit_tower, pixels, 8), expected)


def test_gradients_reach_the_base_weights(vit, vit_tower):
    encode(vit_tower, torch.randn(2, 3, 32, 32), Compression(8, 0.5), noise_of(2)).square().sum().backward()
    for name, weight in vit.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_dropout_keeps_prefix_tokens_and_counts():
    torch.manual_seed(0)
    name = "vit_small_patch14_reg4_dinov2"
    model = timm.create_model(name, num_classes=0, img_size=28, patch_size=7, embed_dim=32, depth=2, num_heads=2)
    tower, seen = as_tower(model), []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.randn(3, 3, 28, 28)
    encode(tower, pixels, Compression(7))
    encode(tower, pixels, Compression(7, 0.6), noise_of(3))
    full, dropped = seen
    assert dropped.shape[1] == tower.num_prefix_tokens + round(0.4 * 16) == 5 + 6
    assert torch.equal(dropped[:, :5], full[:, :5])
    chosen = [(token == rest).all(1).nonzero().item() for token in dropped[0, 5:] for rest in [full[0, 5:]]]
    assert chosen == sorted(set(chosen))
    assert not torch.equal(dropped[0, 5:] - dropped[1, 5:], full[0, 5:11] - full[1, 5:11])


@given(st.integers(1, 40), st.data())
def test_kept_patches_are_a_subset_in_order(patches, data):
    count = data.draw(st.integers(1, patches))
    kept = keep_some(torch.rand(4, patches, generator=torch.Generator().manual_seed(patches)), count)
    assert kept.shape == (4, count)
    assert (kept.diff(dim=1) > 0).all()
    assert int(kept.max()) < patches


def test_every_patch_is_kept_equally_often():
    kept = keep_some(torch.rand(20000, 8), 2)
    share = torch.bincount(kept.flatten(), minlength=8) / 20000
    torch.testing.assert_close(share, torch.full((8,), 0.25), atol=0.015, rtol=0)


@given(st.sampled_from([4, 8, 16, 32]), st.floats(0, 0.99))
def test_counts(size, drop):
    one = Compression(size, drop)
    assert one.patches(32) == (32 // size) ** 2
    assert one.kept(32) == max(1, round((1 - drop) * (32 // size) ** 2))
    assert one.undropped() == Compression(size)


@pytest.mark.parametrize("wrong", [{"patch_size": 0}, {"patch_size": 4.0}, {"patch_size": 4, "drop": 1.0}])
def test_wrong_values_are_named(wrong):
    with pytest.raises(UserError, match=r"patch size|drop"):
        Compression(**wrong)


@pytest.mark.parametrize("size", [2, 6, 64])
def test_a_patch_size_that_does_not_fit_is_refused(vit_tower, size):
    with pytest.raises(UserError, match=rf"patch size of {size} does not fit .* choose one of 4, 8, 16, 32"):
        check_compressible(vit_tower, Compression(size))


def test_models_without_one_position_embedding_are_refused(rotary_case):
    with pytest.raises(UserError, match="one absolute position"):
        check_compressible(rotary_case.tower, Compression(patch_size_of(rotary_case.tower)))


def test_the_demo_model_can_be_compressed(demo):
    tower = demo.tower
    check_compressible(tower, Compression(16, 0.5))
    pixels = torch.randn(2, 3, 96, 96)
    assert encode(tower, pixels, Compression(16, 0.5), noise_of(2)).shape == (2, 128)
    assert torch.equal(encode(tower, pixels, Compression(8)), tower(pixels))
