"""What takes a model's tokens for a map of the picture must not get those of a pruned one unawares."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from patchranking import Pruner, UserError, attach, detach
from patchranking.pruning.schedule import Schedule

MAPPED = ["open_clip", "open_clip-custom-text", "timm-clip", "timm-average-pool"]


@pytest.mark.parametrize("case", MAPPED, indirect=True)
@pytest.mark.parametrize("name", ["centre-crop", "tome"])
@torch.inference_mode()
def test_maps_of_a_pruned_model_are_refused_and_those_of_the_dense_one_stay(case, name):
    pixels, module = case.pixels, case.tower.module
    dense = module.forward_intermediates(pixels, intermediates_only=True)
    with attach(case.model, name, schedule=Schedule({2: 0.5})):
        case.encode(pixels)
        with pytest.raises(UserError, match=r"^forward_intermediates needs every patch .* pruned: detach"):
            module.forward_intermediates(pixels)
    found = module.forward_intermediates(pixels, intermediates_only=True)
    maps = [one["image_intermediates"] if isinstance(one, dict) else one for one in (found, dense)]
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


@pytest.mark.parametrize("case", ["open_clip"], indirect=True)
@torch.inference_mode()
def test_at_keep_1_nothing_is_refused(case):
    dense = case.model.forward_intermediates(case.pixels)
    with Pruner.unfitted(case.tower, "tiny", Schedule({2: 0.5})).attached(case.model) as pruner:
        with pytest.raises(UserError, match="forward_intermediates"):
            case.model.forward_intermediates(case.pixels)
        pruner.keep = 1.0
        found = case.model.forward_intermediates(case.pixels)
    assert torch.equal(found["image_intermediates"][-1], dense["image_intermediates"][-1])


@pytest.mark.parametrize("case", ["timm-clip"], indirect=True)
def test_getting_layers_of_timm_is_refused_too(case):
    with attach(case.model, schedule=Schedule({2: 0.5})), pytest.raises(UserError, match="needs every patch"):
        case.model.get_intermediate_layers(case.pixels, n=[4], reshape=True)


@pytest.mark.parametrize("case", ["transformers-vision"], indirect=True)
def test_a_head_on_the_grid_is_refused(case):
    class TinyForSemanticSegmentation(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = case.model

        def forward(self, pixels):
            return self.backbone(pixels).last_hidden_state[:, 1:].unflatten(1, (4, 4))

    TinyForSemanticSegmentation.__module__ = "transformers.models.tiny"
    model = TinyForSemanticSegmentation()
    dense = model(case.pixels)
    with attach(case.model, schedule=Schedule({2: 0.5})), pytest.raises(UserError, match="TinyForSemanticSegmentation"):
        model(case.pixels)
    assert torch.equal(model(case.pixels), dense)


@pytest.mark.parametrize("case", ["transformers", "transformers-vision"], indirect=True)
@torch.inference_mode()
def test_hidden_states_of_some_patches_come_with_a_warning(case):
    vision = case.tower.module

    def shapes():
        return [state.shape[1] for state in vision(case.pixels, output_hidden_states=True).hidden_states]

    for name, last in (("centre-crop", 9), ("evit", 10)):
        with attach(case.model, name, schedule=Schedule({2: 0.5})):
            with pytest.warns(UserWarning, match="17 tokens at first and .* no map"):
                found = shapes()
            assert found[0] == 17
            assert found[-1] == last
    pruner = Pruner.unfitted(case.tower, "tiny", Schedule({2: 0.5}))
    with pruner.attached(case.model), warnings.catch_warnings():
        warnings.simplefilter("error")
        case.encode(case.pixels)
        pruner.keep = 1.0
        assert shapes() == [17] * 6
    attach(case.model, schedule=Schedule({2: 0.5}))
    detach(case.model)
    assert not vision._forward_hooks
