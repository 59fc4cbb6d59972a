from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from PIL import Image
from safetensors.torch import save_file

from patchranking.demo import MODEL_DIR
from patchranking.demo.scenes import scene
from patchranking.errors import MissingExtraError, UserError
from patchranking.extras import declare_missing_operators
from patchranking.towers.load import load_model

TOKENS_AND_PIXELS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    text = {**SIZES, "vocab_size": 632, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**SIZES, "image_size": 96, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(folder)
    for name in TOKENS_AND_PIXELS:
        shutil.copy(MODEL_DIR / name, folder)
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    pixels |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 48, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    sizes = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    preprocess = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": preprocess}))
    weights = {name: value.clone() for name, value in open_clip.CLIP(**sizes).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    normal = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "model_args": sizes,
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 10, "crop_pct": 1.0, **normal},
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, **sizes)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def names(hf, clip, vit):
    return {
        "demo": "demo",
        "hf": f"hf:{hf}",
        "open_clip": f"open_clip:local-dir:{clip}",
        "timm": f"timm:local-dir:{vit}",
    }


@pytest.fixture(scope="module", params=["demo", "hf", "open_clip", "timm"])
def loaded(request, names):
    return load_model(names[request.param])


def test_is_ready_to_encode(loaded, names):
    assert loaded.name in names.values()
    assert not any(module.training for module in loaded.model.modules())
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert loaded.tower.module in list(loaded.model.modules())
    assert loaded.logit_scale >= 1
    pixels = loaded.preprocess(scene("test", 0).image)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, *loaded.tower.image_size))
    features = loaded.tower(pixels[None])
    assert features.isfinite().all()
    torch.testing.assert_close(features, load_model(loaded.name).tower(pixels[None]), rtol=0, atol=0)


def test_a_picture_inverts_the_preprocessing(loaded):
    image = scene("val", 1).image.resize(loaded.tower.image_size)
    shown = loaded.picture(loaded.preprocess(image))
    assert (shown.mode, shown.size) == ("RGB", image.size)
    assert np.array_equal(np.asarray(shown), np.asarray(image))
    levels = torch.arange(256).view(1, 16, 16).expand(3, -1, -1) / 255
    mean, std = (torch.tensor(list(values)).view(3, 1, 1) for values in (loaded.mean, loaded.std))
    assert np.asarray(loaded.picture((levels - mean) / std))[..., 2].flatten().tolist() == list(range(256))


def test_a_picture_of_half_precision_and_beyond_the_range(loaded):
    assert loaded.picture(torch.full((3, 5, 7), 99.0).half()).getpixel((6, 4)) == (255, 255, 255)
    assert loaded.picture(torch.full((3, 5, 7), -99.0).bfloat16()).getpixel((0, 0)) == (0, 0, 0)


def test_texts_become_unit_vectors(loaded):
    if loaded.name.startswith("timm"):
        assert loaded.text is None
        return
    texts = ["a red umbrella", "", "a " + "very " * 300 + "long caption"]
    features = loaded.text(texts)
    assert features.shape == (3, loaded.tower(torch.zeros(1, 3, *loaded.tower.image_size)).shape[-1])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(features[:1], loaded.text(texts[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 50), (50, 3), (1, 200)])
def test_tiny_pictures_keep_their_colour(loaded, size):
    wanted = loaded.preprocess(Image.new("RGB", (300, 300), (200, 30, 60))).mean((1, 2))
    found = loaded.preprocess(Image.new("RGB", size, (200, 30, 60)))
    assert found.shape == (3, *loaded.tower.image_size)
    torch.testing.assert_close(found.mean((1, 2)), wanted, atol=0.05, rtol=0)


PICTURES = [(90, 60), (31, 200), (1, 1)]


@pytest.mark.parametrize("size", PICTURES)
def test_hf_does_what_transformers_does(hf, size):
    loaded = load_model(f"hf:{hf}")
    stock = transformers.CLIPModel.from_pretrained(hf).eval()
    processor = transformers.AutoProcessor.from_pretrained(hf)
    image = scene("test", 2).image.resize(size)
    batch = processor(text=["a sun"], images=[image], return_tensors="pt")
    assert torch.equal(loaded.preprocess(image), batch["pixel_values"][0])
    with torch.inference_mode():
        output = stock(**batch)
        cosine = torch.nn.functional.normalize(loaded.tower(batch["pixel_values"]), dim=-1) @ loaded.text(["a sun"]).T
    torch.testing.assert_close(cosine * loaded.logit_scale, output.logits_per_image)


@pytest.mark.parametrize("size", PICTURES)
def test_open_clip_does_what_open_clip_does(clip, size):
    loaded = load_model(f"open_clip:local-dir:{clip}")
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    image = scene("test", 2).image.resize(size)
    pixels = preprocess(image)
    assert torch.equal(loaded.preprocess(image), pixels)
    tokens = open_clip.get_tokenizer(f"local-dir:{clip}")(["a sun", "a cloud"])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.tower(pixels[None]), stock.eval().encode_image(pixels[None]))
        torch.testing.assert_close(loaded.text(["a sun", "a cloud"]), stock.encode_text(tokens, normalize=True))
    assert loaded.logit_scale == pytest.approx(stock.logit_scale.exp().item())
    assert (loaded.mean, loaded.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.parametrize("size", PICTURES)
def test_timm_does_what_timm_does(vit, size):
    loaded = load_model(f"timm:local-dir:{vit}")
    stock = timm.create_model(f"local-dir:{vit}", pretrained=True).eval()
    image = scene("test", 2).image.resize(size)
    pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(stock), is_training=False)(image)
    assert torch.equal(loaded.preprocess(image), pixels)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.tower(pixels[None]), stock(pixels[None]))
    assert loaded.logit_scale == 1


def sentence(name, device="cpu"):
    with pytest.raises(UserError) as caught:
        load_model(name, device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "nope", "demo:small", "hf:", "timm:", "open_clip:", "Demo", "nope:a"])
def test_unknown_names(name):
    assert f"Unknown model '{name}'" in sentence(name)


def test_names_without_weights(tmp_path, monkeypatch):
    assert "names no weights" in sentence("open_clip:ViT-B-16")
    assert "Nope" in sentence("open_clip:Nope/openai")
    assert "nope" in sentence("timm:nope")
    for name in ("hf:", "open_clip:local-dir:"):
        assert f"There is no folder '{tmp_path / 'none'}'" in sentence(f"{name}{tmp_path / 'none'}")
    monkeypatch.chdir(tmp_path)
    assert "There is no folder './none'" in sentence("hf:./none")
    for name in ("hf:", "open_clip:local-dir:", "timm:local-dir:"):
        assert f"Could not load the model '{name}{tmp_path}'" in sentence(f"{name}{tmp_path}")


def test_open_clip_weights_are_never_left_random(clip, tmp_path):
    shutil.copy(clip / "open_clip_config.json", tmp_path)
    assert "could not be loaded" in sentence(f"open_clip:local-dir:{tmp_path}")


def test_transformers_weights_are_never_left_random(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "other")
    transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=96)).save_pretrained(tmp_path / "vit")
    shutil.copy(tmp_path / "vit" / "model.safetensors", tmp_path / "other")
    assert "is no complete CLIPModel: it lacks" in sentence(f"hf:{tmp_path / 'other'}")


def test_transformers_weights_of_another_size_are_refused(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "other")
    config = json.loads((hf / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"projection_dim": 20}))
    assert "lacks 2 weights such as text_projection.weight" in sentence(f"hf:{tmp_path / 'other'}")


@pytest.mark.parametrize("content", [b"", b"xx", bytes(400)])
def test_damaged_weights(clip, tmp_path, content):
    shutil.copy(clip / "open_clip_config.json", tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(content)
    assert "Could not load" in sentence(f"open_clip:local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("open_clip:ViT-B-16/openai", "open_clip", "open-clip"),
        ("hf:some/model", "transformers", "transformers"),
        ("demo", "transformers", "transformers"),
        ("timm:vit_tiny_patch16_224", "timm", "timm"),
    ],
)
def test_a_missing_library_names_its_extra(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        load_model(name)
    assert str(caught.value) == f"This model needs {module}: install it with pip install 'patchranking[{extra}]'."


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "cpu:x"])
def test_unusable_devices(device):
    assert f"The device '{device}' cannot be used: " in sentence("demo", device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda():
    message = sentence("demo", "cuda")
    assert "'cuda' cannot be used" in message
    assert len(message) < 200


def test_loading_is_silent_and_leaves_the_progress_bars_as_they_were(names, capfd):
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (True, False)
    load_model(names["hf"])
    assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (True, False)
    assert logging.get_verbosity() == logging.WARNING
    logging.set_verbosity(verbosity)
    disable_progress_bars()
    try:
        load_model(names["hf"])
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (True, True)
    finally:
        enable_progress_bars()
    logging.disable_progress_bar()
    try:
        load_model(names["hf"])
        assert not logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    finally:
        logging.enable_progress_bar()
    assert capfd.readouterr() == ("", "")


def test_torchvision_can_be_imported():
    from torchvision import transforms

    assert transforms.ToTensor()(Image.new("RGB", (2, 3))).shape == (3, 3, 2)


def test_declaring_operators_twice_does_nothing():
    module = sys.modules.get("torchvision")
    declare_missing_operators()
    assert sys.modules.get("torchvision") is module
