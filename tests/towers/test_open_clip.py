from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel

from patchranking import as_text_tower
from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.towers import as_tower
from patchranking.towers.load import load_model
from patchranking.towers.open_clip import check_configuration

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


@torch.inference_mode()
@pytest.mark.parametrize(
    ("pool", "projection", "size"),
    [("token", None, 24), ("", "linear", 24), ("avg", "mlp", 24), ("avg", "none", 32)],
)
def test_trunks_of_timm_go_through_the_head_that_open_clip_puts_on(on_timm, pool, projection, size):
    case = on_timm("vit_base_patch16_224", timm_pool=pool, timm_proj=projection)
    assert isinstance(case.model.visual, TimmModel)
    for given in (case.model, case.model.visual):
        tower = as_tower(given)
        assert torch.equal(tower(case.pixels), case.encode(case.pixels))
        assert tower.feature_size == size
    tokens = case.tower.run(case.tower.embed(case.pixels), 0)
    with attach_reductions(case.tower, {case.tower.depth: lambda tokens, _: Reduced(tokens.flip(0))}):
        assert torch.equal(case.encode(case.pixels), case.tower.pool(tokens.flip(0)))


@torch.inference_mode()
def test_captions_of_a_coca_are_written_from_as_many_tokens_when_patches_go(coca):
    """Its caption head reads the queries of the pooling attention, whose number is fixed."""
    case, model, ids = coca, coca.model, torch.randint(1, 64, (3, 8))
    dense = model(case.pixels, ids)["logits"]
    kept = torch.arange(5).expand(3, -1)
    with attach_reductions(case.tower, {2: lambda tokens, _: Reduced(tokens[:, :6], kept)}):
        pruned = model(case.pixels, ids)["logits"]
    assert pruned.shape == dense.shape
    assert not torch.equal(pruned, dense)
    assert torch.equal(model(case.pixels, ids)["logits"], dense)


@torch.inference_mode()
@pytest.mark.parametrize("attached", [True, False])
def test_masked_attention_projects_all_positions_at_once(coca, attached, monkeypatch):
    """A query that has the batch before the sequence in memory is projected position by position, at half the speed."""
    tower, layouts = coca.tower, []
    linear = torch.nn.functional.linear

    def noting(tokens, weight, bias=None):
        if weight.shape[0] == 3 * tower.width:
            layouts.append(tokens.is_contiguous())
        return linear(tokens, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", noting)
    tokens = tower.embed(coca.pixels)
    if attached:
        sizes = torch.ones(tokens.shape[:2])
        with attach_reductions(tower, {1: lambda tokens, _: Reduced(tokens, None, sizes)}, sized=True):
            tower.module(coca.pixels)
    else:
        tower.run(tokens, 1, key_bias=torch.zeros(tokens.shape[:2]))
    assert layouts == [True] * (tower.depth - 1)
    assert not any(block.attn._forward_pre_hooks for block in tower.blocks)


@torch.inference_mode()
def test_the_text_side_of_a_coca_is_its_own(coca):
    model, ids = coca.model, torch.randint(1, 64, (2, 8))
    text = as_text_tower(model, lambda _: ids)
    assert torch.equal(text(["a", "b"]), model.encode_text(ids))
    assert text.context_length == 8
    assert text.embedding is model.text.token_embedding


@pytest.mark.parametrize(
    ("vision", "kind"),
    [
        ({"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}, "ResNet"),
        ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, "ModifiedResNet"),
        ({"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}, "ConvNeXt"),
    ],
)
def test_other_image_towers_are_refused_by_name_and_so_are_their_configurations(vision, kind):
    said = rf"its image tower is a {kind}: patchranking needs a vision transformer .* as ViT-B-16, .* have\.$"
    model = open_clip.CustomTextCLIP(24, {"image_size": 64, **vision}, TEXT)
    for given in (model, model.visual):
        if isinstance(given, open_clip.CustomTextCLIP | TimmModel):
            with pytest.raises(UserError, match=said):
                as_tower(given)
    with pytest.raises(UserError, match=rf"^Such-a-model is not supported, {said}"):
        check_configuration("Such-a-model", {"vision_cfg": vision})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RN50/openai", "ModifiedResNet"),
        ("MobileCLIP2-S4/dfndr2b", "FastVit"),
        ("vit_relpos_medium_patch16_cls_224/none", "VisionTransformerRelPos"),
    ],
)
def test_nothing_is_downloaded_of_a_model_that_is_refused(name, kind, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", None)
    with pytest.raises(UserError, match=rf"^{name.partition('/')[0]} is not supported, its image tower is a {kind}:"):
        load_model(f"open_clip:{name}")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16", "coca_ViT-B-32", "ViTamin-S"])
def test_configurations_that_work_are_not_refused(name):
    check_configuration(name, open_clip.get_model_config(name))
