from __future__ import annotations

import json

import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.towers.load import load_model
from patchranking.towers.transformers.families import CLASSES

IMAGE = Image.linear_gradient("L").convert("RGB").resize((50, 40))


def changed(folder, **values):
    """Changes what a saved configuration says; None takes an entry away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (config | values).items() if value is not None}))
    return f"hf:{folder}"


@torch.inference_mode()
@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_model_is_loaded_as_what_it_is(make, encode, save, tmp_path, name):
    made = make(name)
    loaded = load_model(save(made.model, tmp_path))
    assert type(loaded.model) is type(made.model)
    pixels = loaded.preprocess(IMAGE)[None]
    assert torch.equal(loaded.tower(pixels), encode(loaded.model, pixels))
    torch.testing.assert_close(loaded.tower(pixels), made.encode(pixels))
    assert (loaded.text is not None) is hasattr(made.model, "get_text_features")
    assert loaded.logit_scale == (made.model.logit_scale.exp().item() if hasattr(made.model, "logit_scale") else 1)
    if loaded.text is not None:
        assert loaded.text(["a photo of the sun"]).shape == loaded.tower(pixels).shape


@torch.inference_mode()
def test_a_metaclip_2_is_not_taken_for_a_clip(make, make_tokenizer, save, tmp_path):
    """Its keys are those of CLIP, which looks for the end of a text elsewhere."""
    made, tokenizer = make("MetaClip2Model"), make_tokenizer("metaclip_2")
    name = save(made.model, tmp_path)
    given = tokenizer(["the sun", "a small red umbrella"], padding=True, return_tensors="pt")
    expected = F.normalize(made.model.get_text_features(**given).pooler_output, dim=-1)
    for change in ({}, {"architectures": None}, {"architectures": ["CLIPModel"]}):
        found = load_model(changed(tmp_path, **change)).text(["the sun", "a small red umbrella"])
        torch.testing.assert_close(found, expected)
    as_clip = transformers.CLIPModel.from_pretrained(tmp_path)
    wrong = F.normalize(as_clip.get_text_features(**given).pooler_output, dim=-1)
    assert (wrong - expected).abs().max() > 1e-3
    assert name == f"hf:{tmp_path}"


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("CLIPSegModel", "CLIPSegForImageSegmentation"),
        ("ViTModel", "ViTForMaskedImageModeling"),
        ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
        ("OwlViTModel", "OwlViTForObjectDetection"),
    ],
)
def test_of_a_class_with_other_heads_the_encoder_is_loaded(make, save, tmp_path, name, other):
    whole = getattr(transformers, other)(make(name).model.config).eval()
    loaded = load_model(save(whole, tmp_path))
    assert type(loaded.model).__name__ == name
    pixels = loaded.preprocess(IMAGE)[None]
    encoder = getattr(whole, whole.base_model_prefix)
    if hasattr(encoder, "get_image_features"):
        expected = encoder.get_image_features(pixels).pooler_output
    else:
        expected = encoder(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(loaded.tower(pixels), expected)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Dinov2Model", "DINOv3ViTModel", "CLIPSegModel"])
def test_the_grid_is_that_of_the_images_that_the_processor_makes(make, save, tmp_path, name):
    """DINOv2 was trained at 518 pixels, and its image processor makes 224."""
    made = make(name)
    loaded = load_model(save(made.model, tmp_path, size=48))
    pixels = loaded.preprocess(IMAGE)[None]
    assert pixels.shape == (1, 3, 48, 48)
    assert (loaded.tower.image_size, loaded.tower.grid) == ((48, 48), (6, 6))
    torch.testing.assert_close(loaded.tower(pixels), made.encode(pixels))


@torch.inference_mode()
def test_siglip_2_of_any_shape_takes_images_squeezed_into_its_square(make, save, tmp_path):
    made = make("Siglip2Model")
    loaded = load_model(save(made.model, tmp_path))
    square = IMAGE.resize((32, 32), Image.Resampling.BILINEAR)
    given = transformers.AutoImageProcessor.from_pretrained(tmp_path)(images=square, return_tensors="pt")
    expected = made.model.get_image_features(**given).pooler_output
    torch.testing.assert_close(loaded.tower(loaded.preprocess(IMAGE)[None]), expected)


def sentence(name):
    with pytest.raises(UserError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "swin", "architectures": ["SwinModel"]},
            "is a SwinModel, which is not supported: of transform",
        ),
        ({"model_type": "convnext"}, "is a ConvNextModel, which is not supported: of transformers, patchranking takes"),
        ({"model_type": "jina_clip", "auto_map": {}}, "is a jina_clip, which is not supported"),
        (
            {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]},
            "is a BlipForConditionalGeneration, which is not supported: of this model type, patchranking takes "
            "BlipModel, BlipVisionModel.",
        ),
        ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}, "is a model of timm: give timm:hf_hub:"),
        ({"embed_dim": 512}, "(no config.json names its model_type): a model of open_clip is open_clip:hf-hub:NAME"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_configuration_alone(tmp_path, config, words):
    assert words in sentence(changed(tmp_path, **config))


def test_an_image_processor_for_another_size_is_refused(make, save, tmp_path):
    said = sentence(save(make("SiglipModel").model, tmp_path, size=48))
    assert "takes images of (32, 32) pixels, and its image processor makes (48, 48): correct its preprocessor_c" in said


def test_only_a_pooler_may_lack_its_weights(make, save, tmp_path):
    model = make("ViTModel").model
    name = save(model, tmp_path)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "pooler" not in k})
    assert load_model(name).model.pooler is None
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "layernorm." not in k})
    assert "is no complete ViTModel: it lacks 2 weights such as layernorm.bias." in sentence(name)
