from __future__ import annotations

import open_clip
import peft
import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import distributed, nn

from patchranking.errors import UserError
from patchranking.pruning.select import gather_tokens
from patchranking.towers import as_text_tower, as_tower
from patchranking.towers.base import activation_name
from patchranking.towers.identity import fingerprint


@torch.inference_mode()
def test_embed_run_pool_equal_the_library_bit_for_bit(case):
    tower = case.tower
    expected = case.encode(case.pixels)
    assert torch.equal(tower(case.pixels), expected)
    for split in (0, 2, tower.depth):
        assert torch.equal(tower.pool(tower.run(tower.embed(case.pixels, split), split)), expected)


@torch.inference_mode()
def test_embed_is_the_input_of_the_block_named(case):
    seen = {}
    for index, block in enumerate(case.tower.blocks):
        block.register_forward_pre_hook(lambda _, inputs, index=index: seen.update({index: inputs[0].clone()}))
    case.encode(case.pixels)
    for index in range(case.tower.depth):
        assert torch.equal(case.tower.embed(case.pixels, index), seen[index])


def test_shapes_agree_with_the_tokens(case):
    tower = case.tower
    tokens = tower.embed(case.pixels)
    assert tokens.shape == (3, tower.num_prefix_tokens + tower.num_patches, tower.width)
    assert tower.image_size == tuple(case.pixels.shape[2:])
    assert tower.depth == 5


@torch.inference_mode()
def test_the_order_of_patches_after_embedding_is_irrelevant(case):
    tower = case.tower
    tokens = tower.embed(case.pixels)
    order = torch.randperm(tower.num_patches).expand(len(tokens), -1)
    shuffled = tower.run(gather_tokens(tokens, order, tower.num_prefix_tokens), 0, positions=order)
    torch.testing.assert_close(tower.pool(shuffled), tower.pool(tower.run(tokens, 0)), rtol=0, atol=1e-5)


@pytest.fixture
def inside(monkeypatch):
    """A function that tells the queries and keys, ``(batch, heads, tokens, head width)``, inside a block."""
    seen = []

    def kernel(query, key, value, *_, **__):
        seen.append((query, key))
        return torch.zeros_like(query)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", kernel)
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)

    def run(tower, tokens, block):
        tower.run(tokens, block, block + 1)
        return seen.pop()

    return run


@torch.no_grad()
def sharpened(tower):
    """Makes attention far from even, with biases and norms that are not 0 and 1."""
    for name, weight in tower.module.named_parameters():
        if name.endswith("bias") or "_norm" in name:
            weight.normal_()
        elif weight.ndim == 2 and "pos" not in name:
            weight.mul_(5)
    return tower


@torch.no_grad()
def test_class_attention_equals_the_attention_inside_the_block(case, inside):
    tower, block = sharpened(case.tower), 2
    tokens = tower.embed(case.pixels)
    if not tower.has_class_token:
        for read in (tower.class_attention, lambda *given: tower.class_attention_in(tower.attend(*given))):
            with pytest.raises(UserError, match="class token"):
                read(tokens, block)
        return
    query, keys = inside(tower, tokens, block)
    expected = (query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)[:, :, 0].mean(1)
    for found in (tower.class_attention(tokens, block), tower.class_attention_in(tower.attend(tokens, block))):
        assert found.std(1).min() > 1e-3
        torch.testing.assert_close(found, expected[:, tower.num_prefix_tokens :], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_attend_shows_the_queries_and_keys_inside_the_block(case, inside):
    tower = sharpened(case.tower)
    tokens = tower.embed(case.pixels)
    for block in (0, 3):
        query, keys = inside(tower, tokens, block)
        found = tower.attend(tokens, block)
        torch.testing.assert_close(found.queries, query, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.keys, keys, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("biased", [False, True])
def test_two_halves_make_a_block(case, biased):
    """With layer scale, and with the logarithms of sizes as a bias towards tokens."""
    tower = sharpened(case.tower)
    for name, weight in case.model.named_parameters():
        if name.endswith(("gamma", "gamma_1", "gamma_2")):
            weight.uniform_(0.5, 2)
    tokens = tower.embed(case.pixels)
    bias = torch.randint(1, 9, tokens.shape[:2]).float().log() if biased else None
    expected = tower.run(tokens, 2, 3, bias)
    found = tower.feed_forward(tower.attend(tokens, 2, bias).tokens, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"qkv_bias": False}, {"scale_attn_norm": True}])
def test_attention_follows_timms_options(changes, inside):
    tower = sharpened(as_tower(timm.create_model("vit_base_patch16_224", pretrained=False, **SIZES, **changes).eval()))
    tokens = tower.embed(torch.randn(2, 3, 32, 32))
    query, keys = inside(tower, tokens, 0)
    expected = (query[:, :, :1] @ keys.transpose(-1, -2) * 16**-0.5).softmax(-1).mean(1)[:, 0]
    torch.testing.assert_close(tower.class_attention(tokens, 0), expected[:, 1:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tower.attend(tokens, 0).keys, keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower.class_attention_in(tower.attend(tokens, 0)), expected[:, 1:], rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"qkv_bias": False}, {"scale_attn_norm": True}])
def test_two_halves_make_a_block_with_timms_options(changes):
    tower = sharpened(as_tower(timm.create_model("vit_base_patch16_224", pretrained=False, **SIZES, **changes).eval()))
    tokens = tower.embed(torch.randn(2, 3, 32, 32))
    found = tower.feed_forward(tower.attend(tokens, 0).tokens, 0)
    torch.testing.assert_close(found, tower.run(tokens, 0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("read", ["attend", "class_attention"])
@pytest.mark.parametrize("changes", [{"attn_layer": "diff"}, {"block_fn": ResPostBlock}])
def test_attention_is_not_read_in_other_blocks_of_timm(read, changes):
    tower = as_tower(timm.create_model("vit_base_patch16_224", pretrained=False, **SIZES, **changes).eval())
    with pytest.raises(UserError, match="cannot be read in this kind of timm's blocks"):
        getattr(tower, read)(tower.embed(torch.randn(1, 3, 32, 32)), 0)


@pytest.mark.parametrize("read", ["attend", "class_attention"])
def test_attention_is_not_read_in_custom_blocks_of_open_clip(read):
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1, "qk_norm": True}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    tower = as_tower(open_clip.CLIP(24, vision, text).eval())
    with pytest.raises(UserError, match="cannot be read in open_clip's custom blocks"):
        getattr(tower, read)(tower.embed(torch.randn(1, 3, 32, 32)), 0)


def test_an_unsupported_model_is_named_with_what_is_supported():
    for model in (nn.Linear(2, 2), timm.create_model("resnet10t", pretrained=False)):
        with pytest.raises(
            UserError,
            match=r"is not supported.*(patchranking works on open_clip CLIP, .* transformers|vision transformer)",
        ):
            as_tower(model)


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
)
def test_a_wrapped_model_is_unwrapped(one_of_each, wrapper, process_group):
    wrapped = wrapper(one_of_each.model.requires_grad_(True))
    assert as_tower(wrapped).module is one_of_each.tower.module


def test_text_towers_are_unwrapped_too(tiny):
    wrapped = as_text_tower(torch.compile(tiny.model, backend="eager"), open_clip.SimpleTokenizer(context_length=24))
    assert torch.equal(wrapped(["a cat"]), tiny.text(["a cat"]))


def test_a_model_with_adapters_is_unwrapped():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_base_patch16_224", pretrained=False, **sizes)
    plain = fingerprint(as_tower(model))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["qkv", "fc1"]))
    assert as_tower(wrapped).module is model
    assert fingerprint(as_tower(wrapped)) == plain


def test_wrappers_that_copy_or_shard_are_refused_in_one_sentence(case):
    parallel = nn.DataParallel(case.model)
    parallel.device_ids = [0, 1]
    with pytest.raises(UserError, match=r"copies the model to every GPU .* use DistributedDataParallel, or one GPU\."):
        as_tower(parallel)
    sharded = type("FullyShardedDataParallel", (nn.Module,), {})()
    with pytest.raises(UserError, match=r"splits the weights up: give the model before it is wrapped\."):
        as_tower(sharded)


def test_where_a_model_is_inside_another_is_said(case):
    holder = nn.Sequential(nn.ModuleDict({"model": case.model}), nn.Identity())
    with pytest.raises(UserError, match="Sequential is not supported, but holds a model that is: give") as raised:
        as_tower(holder)
    assert f"model.get_submodule('0.model'), a {type(case.model).__name__}." in str(raised.value)
    assert as_tower(holder.get_submodule("0.model")).module is case.tower.module


def test_a_tower_is_its_own_view(tower):
    assert as_tower(tower) is tower


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_pytorch_tanh"),
        (timm.layers.QuickGELU(), "quick_gelu"),
        (timm.layers.GELUTanh(), "gelu_pytorch_tanh"),
        (open_clip.transformer.QuickGELU(), "quick_gelu"),
        (nn.ReLU(), "relu"),
    ],
)
def test_activation_names_follow_transformers(module, name):
    assert activation_name(module) == name
