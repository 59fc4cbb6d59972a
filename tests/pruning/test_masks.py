from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from patchranking import attach, detach
from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.pruning.masks import check_no_mask
from patchranking.towers import as_tower
from patchranking.towers.hooks import token_hooks

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Feature(nn.Module):
    """What is exported: the library's own call, with or without a mask."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels, **given):
        return self.model(pixels, **given).pooler_output


@pytest.fixture(params=[ViTModel, Dinov2Model])
def model(request):
    config = {ViTModel: ViTConfig, Dinov2Model: Dinov2Config}[request.param]
    return request.param(config(**SIZES)).eval().requires_grad_(False)


def first_five(tokens, sizes):
    return Reduced(tokens[:, :6], torch.arange(5).expand(len(tokens), -1))


def with_sizes(tokens, sizes):
    return Reduced(tokens[:, :6], None, torch.tensor([1.0, 3, 1, 1, 2, 1]).expand(len(tokens), -1))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_a_model_that_makes_masks_when_it_is_exported_is_exported_pruned(model, sized, strict):
    dense, reduce = model(PIXELS).pooler_output, with_sizes if sized else first_five
    with attach_reductions(as_tower(model), {1: reduce}, sized=sized):
        expected = model(PIXELS).pooler_output
        program = torch.export.export(Feature(model), (PIXELS,), strict=strict)
    torch.testing.assert_close(program.module()(PIXELS), expected, rtol=0, atol=1e-5)
    assert (expected - dense).abs().max() > 1e-3
    assert torch.equal(torch.export.export(Feature(model), (PIXELS,)).module()(PIXELS), dense)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize("method", ["evit", "tome"])
def test_so_is_one_that_is_pruned_inside_its_blocks(model, method):
    with attach(model, method):
        expected = model(PIXELS).pooler_output
        program = torch.export.export(Feature(model), (PIXELS,), strict=False)
    torch.testing.assert_close(program.module()(PIXELS), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("method", ["cls-attention", "evit", "tome"])
def test_methods_without_a_fit_refuse_a_mask(model, method):
    with attach(model, method), pytest.raises(UserError, match="hides patches, as NaFlex models do"):
        model(PIXELS, attention_mask=torch.ones(3, 17).tril(14).long())


@torch.no_grad()
def test_a_mask_that_the_caller_gives_is_refused_when_it_is_exported_too(model):
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[:, 12:] = 0
    with (
        attach_reductions(as_tower(model), {1: first_five}),
        pytest.raises(UserError, match="hides patches, as NaFlex models do"),
    ):
        torch.export.export(Feature(model), (PIXELS,), {"attention_mask": mask}, strict=False)


def test_they_go_with_the_pruner(model):
    attach_reductions(as_tower(model), {1: first_five})
    detach(model)
    assert not list(token_hooks(model))


@pytest.mark.parametrize("place", ["inputs", "attention_mask", "attn_mask"])
def test_a_mask_is_found_wherever_it_is_given(place):
    tokens, mask = torch.zeros(1, 4, 8), torch.ones(1, 1, 4, 4)
    inputs, named = ((tokens, mask), {}) if place == "inputs" else ((tokens,), {place: mask})
    with pytest.raises(UserError, match="give images of one shape, or set its keep rate to 1"):
        check_no_mask(inputs, named)
    check_no_mask((tokens, None), {"attention_mask": None, "rope": mask})
