from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from patchranking import load_data, load_model
from patchranking.errors import UserError
from patchranking.fitting.fit import fit
from patchranking.fitting.settings import FitSettings
from patchranking.pretrain.encoder import (
    load_encoder,
    make_encoder,
    normalisation_of,
    preprocess_of,
    save_encoder,
    trained_weights,
)
from patchranking.towers import as_tower

MORE = {"embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture
def encoder():
    return make_encoder("vit_tiny_patch16_224", 32, 8, MORE, seed=0).eval()


def test_the_seed_draws_the_weights_and_leaves_the_callers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (make_encoder("timm:vit_tiny_patch16_224", 32, 8, MORE, seed) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert torch.equal(first.pos_embed, again.pos_embed)
    assert not torch.equal(first.pos_embed, other.pos_embed)


def test_what_is_saved_is_an_ordinary_model_of_timm_that_can_be_pruned(encoder, noise_folder, tmp_path):
    save_encoder(encoder, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(f"timm:local-dir:{tmp_path / 'model'}")
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.tower(pixels), encoder(pixels))
    assert (tuple(loaded.mean), tuple(loaded.std)) == (normalisation_of(encoder).mean, normalisation_of(encoder).std)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), np.uint8))
    assert torch.equal(loaded.preprocess(picture), preprocess_of(encoder)(picture))
    pruner, _ = fit(
        loaded,
        load_data(str(noise_folder("noise", ("cat", "dog"), 4))),
        tmp_path / "fit",
        FitSettings(keep=0.5, blocks=[1], steps=1),
    )
    assert pruner.keep == 0.5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "vit_tiny"}, "timm cannot make the model 'vit_tiny'"),
        ({"more": {"hight": 3}}, "timm cannot make the model"),
        ({"patch_size": 5}, "does not fit images of 32 x 32"),
        ({"name": "vit_small_patch16_rope_mixed_224"}, "one absolute position embedding"),
    ],
)
def test_a_model_that_cannot_be_is_one_sentence(wrong, said):
    arguments = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "more": MORE, "seed": 0}
    with pytest.raises(UserError, match=said):
        make_encoder(**arguments | wrong)


def test_the_grid_of_a_made_model(encoder):
    assert as_tower(encoder).grid == (4, 4)


def test_a_trained_encoder_is_read_again(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "model")
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_encoder(tmp_path / "model")(pixels), encoder(pixels))
    found = trained_weights(tmp_path / "model", encoder)
    assert all(torch.equal(value, found[name]) for name, value in encoder.state_dict().items())


def test_weights_of_another_kind_are_one_sentence(encoder, tmp_path):
    with pytest.raises(UserError, match="no trained encoder in"):
        trained_weights(tmp_path, encoder)
    save_encoder(encoder, tmp_path / "model")
    other = make_encoder("vit_tiny_patch16_224", 32, 8, {**MORE, "depth": 2}, 0)
    with pytest.raises(UserError, match="is of another kind"):
        trained_weights(tmp_path / "model", other)
