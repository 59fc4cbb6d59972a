from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import timm
import torch

from patchranking.errors import UserError
from patchranking.towers import as_tower
from patchranking.towers.identity import BaseModel, fingerprint, matches


@torch.no_grad()
def test_it_notes_the_sizes_and_weights_of_the_model(case):
    known = BaseModel.of(case.tower, "any:name")
    assert known.name == "any:name"
    assert known.image_size == tuple(case.pixels.shape[2:])
    assert known.grid == tuple(side // 8 for side in known.image_size)
    tokens = case.tower.embed(case.pixels).shape[1]
    assert known.num_prefix_tokens == tokens - known.grid[0] * known.grid[1]
    assert (known.width, known.depth) == (32, 5)
    assert known.activation == case.tower.activation
    assert known.fingerprint == fingerprint(case.tower)


def test_it_survives_json(case):
    known = BaseModel.of(case.tower, "any:name")
    assert BaseModel.from_dict(json.loads(json.dumps(asdict(known)))) == known


def test_it_accepts_the_model_under_any_name_and_in_half_precision(case):
    known = replace(BaseModel.of(case.tower, "first"), name="second")
    known.check(case.tower)
    known.check(as_tower(case.model.half()))


def of(**changes):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    torch.manual_seed(0)
    return as_tower(timm.create_model("vit_base_patch16_clip_224", pretrained=False, **{**sizes, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_size": 48, "patch_size": 12}, r"image size \(32, 32\), and the model has \(48, 48\)"),
        ({"patch_size": 16}, r"grid \(4, 4\), and the model has \(2, 2\)"),
        ({"reg_tokens": 3}, "num prefix tokens 1, and the model has 4"),
        ({"embed_dim": 48}, "width 32, and the model has 48"),
        ({"depth": 3}, "depth 2, and the model has 3"),
        ({"act_layer": "quick_gelu"}, "activation gelu, and the model has quick_gelu"),
    ],
)
def test_another_model_is_refused_with_the_first_difference(changes, words):
    known = BaseModel.of(of(), "timm:tiny")
    with pytest.raises(UserError, match=f"fitted to 'timm:tiny' with {words}: load the model it was fitted to"):
        known.check(of(**changes))


@torch.no_grad()
def test_other_weights_are_refused(tower):
    known = BaseModel.of(tower, "hf:tiny")
    tower.blocks[-1].mlp.fc1.weight.mul_(1.05)
    with pytest.raises(UserError, match="fitted to 'hf:tiny', and the model has other weights: load the model"):
        known.check(tower)


def test_a_model_for_images_of_any_size_is_the_same_at_another(tower):
    known = BaseModel.of(tower, "hf:tiny")
    tower.image_size, tower.grid = (48, 32), (6, 4)
    with pytest.raises(UserError, match="image size"):
        known.check(tower)
    tower.any_size = True
    known.check(tower)
    tower.grid = (3, 2)
    with pytest.raises(UserError, match="image size"):
        known.check(tower)


WRONG = {
    "fingerprint": [None, "", 10**30, [None]],
    "grid": [[4], [[], 4]],
    "image_size": [["a", 3]],
    "width": ["32"],
    "depth": [None],
    "num_prefix_tokens": [1.5],
}


@pytest.mark.parametrize("wrong", [{name: value} for name, values in WRONG.items() for value in values])
def test_what_does_not_describe_a_model_is_refused(tower, wrong):
    told = json.loads(json.dumps(asdict(BaseModel.of(tower, "tiny"))))
    assert BaseModel.from_dict(told) == BaseModel.of(tower, "tiny")
    with pytest.raises(ValueError, match="does not describe a base model"):
        BaseModel.from_dict(told | wrong)
    if "fingerprint" in wrong:
        assert not matches(wrong["fingerprint"], told["fingerprint"])
