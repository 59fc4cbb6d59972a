"""Wrappers of other libraries; those of PyTorch and PEFT are in test_towers.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    CLIPImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
    ZeroShotImageClassificationPipeline,
)

from patchranking import UserError, as_tower, attach, detach
from patchranking.demo import MODEL_DIR, scene
from patchranking.pruning.schedule import Schedule


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "field"), [(TimmWrapperModel, "pooler_output"), (TimmWrapperForImageClassification, "logits")]
)
def test_timms_models_in_transformers_are_unwrapped(kind, field):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    model = kind(TimmWrapperConfig(architecture="vit_base_patch16_224", num_labels=3, model_args=sizes)).eval()
    tower, pixels = as_tower(model), torch.randn(2, 3, 32, 32)
    dense = model(pixels)[field]
    assert tower.module is model.timm_model
    assert torch.equal(tower(pixels), dense)
    with attach(model, schedule=Schedule({1: 0.5})):
        assert not torch.equal(model(pixels)[field], dense)
        assert torch.equal(model(pixels)[field], tower(pixels))
        with pytest.raises(UserError, match="needs every patch"):
            model(pixels, output_hidden_states=True)


def test_pipelines_are_unwrapped(demo):
    pipe = ZeroShotImageClassificationPipeline(
        model=demo.model, image_processor=CLIPImageProcessor(), tokenizer=object(), device="cpu"
    )
    assert as_tower(pipe).module is demo.tower.module
    attach(pipe)
    with pytest.raises(UserError, match="pruned already"):
        demo.tower.check_dense()
    detach(pipe)
    demo.tower.check_dense()


@pytest.mark.parametrize("case", ["transformers"], indirect=True)
def test_sentence_transformers_are_unwrapped(case):
    """Its own classes are not installed: some of their names stand in, one of which holds the model."""
    part = type("CLIPModel", (nn.Module,), {"__module__": "sentence_transformers.models.CLIPModel"})()
    part.model = case.model
    model = type("SentenceTransformer", (nn.Sequential,), {"__module__": "sentence_transformers.SentenceTransformer"})
    assert as_tower(model(part)).module is as_tower(part).module is case.tower.module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_of_sentence_transformers_is_pruned(demo):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(MODEL_DIR), device="cpu").float()
    image = scene("test", 0).image
    dense = model.encode([image], convert_to_tensor=True)
    with attach(model, "tome", keep=0.3), attach(demo.model, "tome", keep=0.3):
        pruned = model.encode([image], convert_to_tensor=True)
        expected = demo.tower(demo.preprocess(image)[None])
    assert not torch.equal(pruned, dense)
    torch.testing.assert_close(pruned, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.encode([image], convert_to_tensor=True), dense)
