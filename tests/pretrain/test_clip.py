from __future__ import annotations

import pytest
import timm
import torch

from patchranking import load_model
from patchranking.errors import UserError
from patchranking.pretrain.clip import ClipSettings, make_clip, save_clip
from patchranking.pretrain.compression import Compression, encode
from patchranking.pretrain.encoder import normalisation_of
from patchranking.pretrain.pictures import drop_noise
from patchranking.towers import as_tower

pytest.importorskip("open_clip")

SMALL = ClipSettings(features=24, context=12, width=32, depth=1)


@pytest.fixture
def encoder(vit):
    """With weights of a size at which the numbers that are added and scaled by show."""
    with torch.no_grad():
        for name, weight in vit.named_parameters():
            weight.add_(0.3 * torch.randn_like(weight) if weight.ndim == 1 or "pos" in name else 0)
    return vit.eval()


def test_the_image_encoder_computes_what_the_trained_one_does(encoder):
    model, _ = make_clip(encoder, SMALL)
    tower, pixels = as_tower(model.eval()), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(tower.embed(pixels), as_tower(encoder).embed(pixels))
    torch.testing.assert_close(model.encode_image(pixels), encoder(pixels) @ model.visual.proj, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compression", [Compression(8), Compression(4, 0.5)], ids=str)
def test_it_is_compressed_alike(encoder, compression):
    model, _ = make_clip(encoder, SMALL)
    pixels, (ours, theirs) = torch.randn(3, 3, 32, 32), (as_tower(model.eval()), as_tower(encoder))
    found = encode(ours, pixels, compression, drop_noise(0, 0, 3))
    expected = encode(theirs, pixels, compression, drop_noise(0, 0, 3)) @ model.visual.proj
    if compression.patch_size == 4:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == expected.shape


def test_what_is_saved_is_an_ordinary_model_of_open_clip(encoder, tmp_path):
    model, configuration = make_clip(encoder, SMALL)
    for _ in range(2):
        save_clip(model.eval(), configuration, normalisation_of(encoder), tmp_path / "model")
    loaded = load_model(f"open_clip:local-dir:{tmp_path / 'model'}")
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.tower(pixels), as_tower(model.requires_grad_(False))(pixels))
    assert loaded.text(["a cat", "a dog"]).shape == (2, 24)
    assert (list(loaded.mean), list(loaded.std)) == ([0.5] * 3, [0.5] * 3)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"init_values": 1e-5}),
        ("vit_tiny_patch16_224", {"no_embed_class": True}),
        ("vit_tiny_patch16_224", {"pre_norm": True}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_another_transformer_is_one_sentence(name, more):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    with pytest.raises(UserError, match="plain vision transformer with a class token"):
        make_clip(timm.create_model(name, **sizes, **more), SMALL)


@pytest.mark.parametrize("wrong", [{"width": 40}, {"context": 2}, {"min_scale": 1.0}, {"features": 0}, {"depth": 1.5}])
def test_settings_that_cannot_be_are_one_sentence(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ClipSettings(**wrong)
