"""open_clip keeps some weights of a half-precision model in float32."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from patchranking import Pruner, as_tower, attach
from patchranking.pruning.schedule import Schedule

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(params=["bf16", "fp16"])
def mixed(request, tmp_path):
    """A model as ``create_model`` makes it, and the type of most of its weights."""
    (tmp_path / "tiny-mixed.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("tiny-mixed", precision=request.param).eval().requires_grad_(False)
    return model, {"bf16": torch.bfloat16, "fp16": torch.float16}[request.param]


def test_the_towers_type_is_that_of_the_tokens_its_blocks_take(mixed):
    model, dtype = mixed
    assert next(model.visual.parameters()).dtype == model.visual.ln_post.weight.dtype == torch.float32
    assert as_tower(model).dtype == dtype


@torch.inference_mode()
def test_it_is_pruned_like_any_other(mixed):
    model, dtype = mixed
    tower, pixels = as_tower(model), torch.randn(2, 3, 32, 32, dtype=dtype)
    dense = model.encode_image(pixels)
    assert torch.equal(tower(pixels), dense)
    assert tower.feature_size == 24
    for name in ("cls-attention", "evit", "tome", "pitome"):
        with attach(model, name, keep=0.5):
            pruned = model.encode_image(pixels)
        assert pruned.dtype == dtype
        assert not torch.equal(pruned, dense)
    pruner = Pruner.unfitted(tower, "tiny", Schedule({1: 0.5}))
    with pruner.attached(model):
        assert not torch.equal(model.encode_image(pixels), dense)
    assert torch.equal(model.encode_image(pixels), dense)


def test_converting_a_model_changes_the_type(case):
    if isinstance(case.model, open_clip.CLIP):
        open_clip.convert_weights_to_lp(case.model, torch.bfloat16)
        assert case.tower.dtype == torch.bfloat16
    assert as_tower(case.model.half()).dtype == torch.float16
