from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock, ParallelThingsBlock
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.towers import as_tower
from patchranking.towers.identity import BaseModel, fingerprint
from patchranking.towers.load import load_model

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@torch.no_grad()
def small(name="vit_base_patch16_224", **changes):
    """A small timm model with large weights, so that attention is far from even."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SIZES, **changes}).eval()
    for own, weight in model.named_parameters():
        if own.endswith(("gamma_1", "gamma_2", "gamma")):
            weight.uniform_(0.5, 1.5)
        elif own.endswith("bias"):
            weight.normal_(std=0.1)
        elif weight.ndim == 2 and "pos" not in own:
            weight.mul_(4)
    return model


MODELS = {
    "parallel": lambda: small(block_fn=ParallelScalingBlock),
    "parallel-without-bias": lambda: small(block_fn=ParallelScalingBlock, qkv_bias=False),
    "parallel-differential": lambda: small(block_fn=DiffParallelScalingBlock),
    "swiglu": lambda: small(mlp_layer=SwiGLU),
    "swiglu-packed": lambda: small(mlp_layer=SwiGLUPacked),
    "geglu": lambda: small(mlp_layer=GluMlp),
    "no-final-norm": lambda: small(final_norm=False),
    "no-final-norm-average": lambda: small(final_norm=False, global_pool="avg"),
    "distilled": lambda: small("deit_tiny_distilled_patch16_224"),
    "hybrid": lambda: small("vit_tiny_r_s16_p8_224", img_size=128),
    "eva": lambda: small("eva_giant_patch14_224"),
    "eva02-unfused": lambda: small("eva02_large_patch14_clip_224"),
    "eva02-post-norm": lambda: small("eva02_base_patch16_clip_224", use_post_norm=True),
    "dinov3-swiglu": lambda: small("vit_7b_patch16_dinov3"),
    "pe-spatial": lambda: small("vit_pe_spatial_tiny_patch16_512", num_classes=0, global_pool="avg"),
    "rope-axial": lambda: small("vit_small_patch16_rope_224"),
    "grouped-queries": lambda: small("eva02_base_patch16_clip_224", attn_type="rope", num_kv_heads=1, qkv_fused=False),
    "mrope": lambda: small(
        "eva02_base_patch16_clip_224", use_rot_pos_emb=True, rope_type="mrope", rope_mrope_section=(2, 3, 3)
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_each_kind_works_dense_pruned_and_masked_and_has_an_identity(make):
    model = make()
    tower = as_tower(model)
    prefix, pixels = tower.num_prefix_tokens, torch.randn(2, 3, *tower.image_size)
    dense = model(pixels)
    assert torch.equal(tower(pixels), dense)
    tokens = tower.embed(pixels, 1)
    chosen = torch.stack([torch.randperm(tower.num_patches)[:5] for _ in pixels])
    gates = torch.zeros(2, tower.num_patches).scatter(1, chosen, 1.0)
    hidden = tower.run(tokens, 1, key_bias=F.pad(gates.log(), (prefix, 0)))
    pruned = tower.run(gather_tokens(tokens, chosen, prefix), 1, positions=chosen)
    torch.testing.assert_close(gather_tokens(hidden, chosen, prefix), pruned, rtol=1e-5, atol=1e-5)
    with attach_reductions(tower, {1: lambda tokens, _: Reduced(gather_tokens(tokens, chosen, prefix), chosen)}):
        assert torch.equal(model(pixels), tower.pool(pruned))
    assert torch.equal(model(pixels), dense)
    assert len(fingerprint(tower)) == 96
    assert len({*fingerprint(tower)}) > 2


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [("parallel", 2, 128), ("swiglu", 3, 128), ("swiglu-packed", 3, 64), ("dinov3-swiglu", 3, 64), ("eva", 2, 139)],
)
def test_the_width_of_an_mlp_is_what_leads_out_of_it(name, layers, width):
    tower = as_tower(MODELS[name]())
    assert (tower.mlp_layers, tower.mlp_width) == (layers, width)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["swiglu", "geglu", "distilled", "hybrid", "eva", "eva02-unfused", "mrope"])
def test_two_halves_make_a_block_and_show_the_class_tokens_attention(name, monkeypatch):
    model, seen = MODELS[name](), []
    tower = as_tower(model)
    tokens = tower.embed(torch.randn(2, 3, *tower.image_size))
    chosen = torch.tensor([[7, 2, 3, 11, 0]] * 2)
    some = gather_tokens(tokens, chosen, tower.num_prefix_tokens)
    expected = tower.run(some, 1, 2, positions=chosen)
    attended = tower.attend(some, 1, positions=chosen)
    torch.testing.assert_close(tower.feed_forward(attended.tokens, 1), expected, rtol=1e-4, atol=1e-4)
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: seen.append((q, k)) or kernel(q, k, v))
    tower.run(some, 1, 2, positions=chosen)
    query, key = seen[0]
    row = (query[:, :, :1] @ key.mT * query.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 0, tower.num_prefix_tokens :]
    torch.testing.assert_close(tower.class_attention(some, 1, chosen), row, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tower.class_attention_in(attended), row, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["parallel", "eva02-post-norm", "grouped-queries"])
def test_blocks_that_are_no_two_plain_halves_say_so(name):
    tower = as_tower(MODELS[name]())
    with pytest.raises(UserError, match="cannot be read in this kind of timm's blocks"):
        tower.attend(tower.embed(torch.randn(1, 3, 32, 32)), 0)


def test_blocks_of_several_attentions_are_refused():
    with pytest.raises(UserError, match="The blocks of this VisionTransformer are ParallelThingsBlocks, which"):
        as_tower(small(block_fn=ParallelThingsBlock))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("network", ["mlp", "transformer", "mixer"])
def test_a_pruner_serves_other_image_sizes_where_its_network_does(name, network):
    model = small(name, dynamic_img_size=True)
    tower, pixels = as_tower(model), torch.randn(2, 3, 48, 40)
    schedule = Schedule({1: 0.75, 2: 0.5})
    pruner = Pruner({1: Predictor.for_tower(tower, network)}, BaseModel.of(tower, "tiny"), schedule).eval()
    dense = model(pixels)
    lengths = []
    with pruner.attached(model):
        for block in model.blocks[1:]:
            block.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
        if network == "mixer":
            with pytest.raises(UserError, match="This mixer was fitted to 16 patches, and 30 came"):
                model(pixels)
        else:
            assert not torch.equal(model(pixels), dense)
            assert lengths == [tower.num_prefix_tokens + count for count in (22, 15)]
        pruner.keep = 1
        assert torch.equal(model(pixels), dense)
    assert torch.equal(model(pixels), dense)


def test_nothing_is_downloaded_of_a_model_that_is_refused(monkeypatch):
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: made(name) if not pretrained else 1 / 0)
    with pytest.raises(UserError, match=r"^ResNet is not supported: patchranking works on .* timm VisionTransformer"):
        load_model("timm:resnet10t")
