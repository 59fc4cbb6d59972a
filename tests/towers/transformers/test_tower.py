from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.towers import as_tower
from patchranking.towers.identity import BaseModel, fingerprint
from patchranking.towers.transformers.families import CLASSES

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
DOUBLE = PIXELS.double()
UNMASKED = [name for name in CLASSES if name.startswith("Blip")]
MASKED = [name for name in CLASSES if name not in UNMASKED]
WITH_CLASS_TOKEN = [name for name in CLASSES if not name.startswith("Siglip")]


@pytest.fixture(scope="module")
def sharp(make):
    """Makes, once, a model in double precision whose attention is far from even, as it is in trained models."""

    @cache
    def made(name, attention="sdpa"):
        one = make(name, attention)
        for key, weight in one.model.named_parameters():
            if weight.ndim == 2 and "pos" not in key and "embed" not in key:
                weight.mul_(3)
        one.model.double()
        return one

    return made


def dropping(tower, patches):
    """A reduction that keeps the same patches of every image."""
    kept = [*range(tower.num_prefix_tokens), *(tower.num_prefix_tokens + patch for patch in patches)]
    return lambda tokens, _: Reduced(tokens[:, kept], torch.tensor(list(patches)).expand(len(tokens), -1))


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CLASSES)
def test_features_are_those_of_the_class_bit_for_bit(make, name, attention):
    """Without a pruner, with one that keeps all, and after it has gone."""
    made = make(name, attention)
    tower, expected = as_tower(made.model), made.encode(PIXELS)
    assert torch.equal(tower(PIXELS), expected)
    assert expected.std(0).min() > 0
    with attach_reductions(tower, {1: dropping(tower, range(16))}):
        assert torch.equal(made.encode(PIXELS), expected)
    assert torch.equal(made.encode(PIXELS), expected)


def masked_features(tower, tokens, first, kept):
    """Features where nothing sees the patches that are not kept, from block ``first`` on, by the halves of blocks."""
    gates = tokens.new_zeros(len(tokens), tower.num_patches)
    gates[:, kept] = 1
    bias = torch.cat([gates.new_zeros(len(tokens), tower.num_prefix_tokens), gates.log()], 1)
    for block in range(first, tower.depth):
        tokens = tower.feed_forward(tower.attend(tokens, block, bias).tokens, block)
    return tower.pool(tokens, gates)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=4, deadline=None)
@given(first=st.integers(0, 2), kept=st.sets(st.integers(0, 15), min_size=1))
def test_pruned_equals_masked(sharp, name, first, kept):
    made, kept = sharp(name), sorted(kept)
    tower = as_tower(made.model)
    expected = masked_features(tower, tower.embed(DOUBLE, first), first, kept)
    with attach_reductions(tower, {first: dropping(tower, kept)}):
        torch.testing.assert_close(made.encode(DOUBLE), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MASKED)
def test_sizes_reach_the_attention_through_the_mask_of_the_library(sharp, name, attention):
    """A token of size 2 is seen as if it came twice."""
    made = sharp(name, attention)
    tower = as_tower(made.model)
    twice, tokens = tower.num_prefix_tokens + 5, tower.embed(DOUBLE, 1)
    doubled, places = torch.cat([tokens, tokens[:, [twice]]], 1), torch.tensor([*range(16), 5]).expand(3, -1)
    expected = tower.pool(tower.run(doubled, 1, positions=places)[:, :-1])

    def sized(tokens, _):
        sizes = torch.ones(tokens.shape[:2])
        sizes[:, twice] = 2
        return Reduced(tokens, None, sizes)

    with attach_reductions(tower, {1: sized}, sized=True):
        found = made.encode(DOUBLE)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - made.encode(DOUBLE)).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_gates_pool_as_if_every_patch_came_as_often_as_its_gate_says(sharp, name):
    tower = as_tower(sharp(name).model)
    tokens, times = tower.run(tower.embed(DOUBLE), 0), torch.tensor([1, 0, 3, 2] * 4)
    repeated = tokens[:, tower.num_prefix_tokens :].repeat_interleave(times, 1)
    expected = tower.pool(torch.cat([tokens[:, : tower.num_prefix_tokens], repeated], 1))
    found = tower.pool(tokens, times.double().expand(len(tokens), -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_class_attention_is_that_of_the_library(sharp, name):
    made = sharp(name, "eager")
    tower, seen = as_tower(made.model), []
    attention = next(part for key, part in tower.blocks[1].named_children() if key in ("self_attn", "attention"))
    hook = attention.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    made.encode(DOUBLE)
    hook.remove()
    expected = seen[0][:, :, 0, tower.num_prefix_tokens :].mean(1).float()
    tokens = tower.embed(DOUBLE, 1)
    for found in (tower.class_attention(tokens, 1), tower.class_attention_in(tower.attend(tokens, 1))):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected.std(1).min() > 1e-4


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "Dinov2Model", "ViTForImageClassification"])
def test_gradient_checkpointing_changes_no_gradient(make, name):
    made = make(name)
    tower = as_tower(made.model.requires_grad_(True).train())
    first = next(tower.module.embeddings.parameters())

    def gradient():
        made.model.zero_grad()
        with attach_reductions(tower, {1: dropping(tower, range(3, 9))}):
            made.encode(PIXELS).pow(2).sum().backward()
        return first.grad.clone()

    expected = gradient()
    made.model.gradient_checkpointing_enable()
    assert torch.equal(gradient(), expected)
    assert expected.any()


@pytest.mark.parametrize("name", UNMASKED)
def test_a_model_without_a_mask_is_refused_where_one_is_needed(make, name):
    tower = as_tower(make(name).model)
    with pytest.raises(UserError, match=r"BlipVisionModel takes no mask: .* fit with --objective imitate"):
        tower.check_gates()


def test_an_attention_kernel_without_masks_is_refused_where_one_is_needed(make):
    tower = as_tower(make("CLIPModel").model)
    tower.check_gates()
    tower.module.config._attn_implementation = "flash_attention_2"
    assert tower.mask_arguments(PIXELS, None) == {"attention_mask": None}
    with pytest.raises(UserError, match=r"'flash_attention_2' takes no mask .* attn_implementation='sdpa'"):
        tower.check_gates()


def test_a_siglip_without_a_head_has_no_feature(make):
    tower = as_tower(make("SiglipVisionModel", vision_use_head=False).model)
    with pytest.raises(UserError, match="no pooling head"):
        tower(PIXELS)


@torch.no_grad()
def test_a_vit_without_a_pooler_has_its_class_token_as_feature(make):
    model = make("ViTModel").model
    model.pooler = None
    assert torch.equal(as_tower(model)(PIXELS), model(PIXELS).last_hidden_state[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_dinov2_takes_the_size_that_its_configuration_says(make, size):
    made, pixels = make("Dinov2Model"), torch.randn(2, 3, *size)
    made.model.config.image_size = size
    tower = as_tower(made.model)
    assert (tower.image_size, tower.grid) == (size, (size[0] // 8, size[1] // 8))
    assert torch.equal(tower(pixels), made.encode(pixels))
    if size == (32, 32):
        assert tower.position_embedding is made.model.embeddings.position_embeddings
    else:
        with pytest.raises(UserError, match="fits its positions to the size of the image, and low-res cannot"):
            _ = tower.position_embedding


@torch.no_grad()
def test_images_padded_to_one_shape_are_refused_where_patches_go(make):
    made = make("Siglip2Model")
    given = {"pixel_values": torch.randn(2, 16, 192), "spatial_shapes": torch.tensor([[4, 4], [2, 6]])}
    given["pixel_attention_mask"] = torch.tensor([[1] * 16, [1] * 12 + [0] * 4])
    tower, dense = as_tower(made.model), made.model.get_image_features(**given).pooler_output
    with attach_reductions(tower, {1: dropping(tower, range(16))}):
        assert torch.equal(made.model.get_image_features(**given).pooler_output, dense)
    with (
        attach_reductions(tower, {1: dropping(tower, range(9))}),
        pytest.raises(UserError, match=r"padding of images of different shapes, and a pruner cannot follow"),
    ):
        made.model.get_image_features(**given)


def test_a_class_built_in_another_way_is_refused_in_one_sentence(make):
    model = make("ViTModel").model
    del model.layers
    with pytest.raises(UserError, match=r"builds ViTModel in a way .* install the latest transformers\."):
        as_tower(model)


def test_a_class_derived_from_one_of_transformers_is_taken_as_that_one(make):
    made = make("CLIPModel")
    made.model.__class__ = type("Mine", (type(made.model),), {})
    assert torch.equal(as_tower(made.model)(PIXELS), made.encode(PIXELS))


def test_where_the_encoder_is_inside_a_model_that_is_not_supported_is_said(make):
    with pytest.raises(UserError, match=r"holds a model that is: give model.get_submodule\('0.vit'\), a ViTModel"):
        as_tower(nn.Sequential(nn.ModuleDict({"vit": make("ViTModel").model})))


SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "other", "changes"),
    [
        ("SiglipModel", "vit_base_patch16_siglip_224", {"act_layer": "gelu_tanh"}),
        ("Dinov2WithRegistersModel", "vit_small_patch14_reg4_dinov2", {"reg_tokens": 3}),
        ("ViTModel", "vit_base_patch16_224", {}),
        ("DINOv3ViTModel", "vit_small_patch16_dinov3", {"num_reg_tokens": 3}),
    ],
)
def test_the_same_weights_in_timm_are_the_same_model(make, name, other, changes):
    tower = as_tower(make(name).model)
    same = as_tower(timm.create_model(other, pretrained=False, num_classes=0, **SIZES, **changes))
    for mine, its in zip(tower.identity(), same.identity(), strict=True):
        its.copy_(mine)
    BaseModel.of(tower, "hf:tiny").check(same)
    assert len(set(fingerprint(same)[:64])) > 60
